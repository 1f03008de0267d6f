"""The card of a data set: how it was made, and how many rows each step had."""

from __future__ import annotations

from pathlib import Path

from nemotron_core.files import write_atomically
from nemotron_data.batch.export import LICENSE
from nemotron_data.synthesis.manifest import Manifest

CARD = "README.md"


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write the card beside the outputs. Raises `NemotronError` if that fails."""
    write_atomically(folder / CARD, card(manifest))


def card(manifest: Manifest) -> str:
    """Return the card, with the outputs as configurations that Hugging Face's `datasets` reads."""
    recipe = manifest.recipe
    lines = ["---", "configs:"]
    for name in recipe.outputs:
        config = name.rpartition(".")[0]
        lines += [f"- config_name: {config}", f'  data_files: "{name}"']
    lines += [
        "---",
        "# Synthetic data",
        "",
        f"Made by `nemotron synthesize` with seed {recipe.seed}; `manifest.json` holds the recipe.",
        "",
        "| output | format | rows |",
        "|---|---|---|",
    ]
    for name, output in recipe.outputs.items():
        lines.append(f"| `{name}` | {output.format} | {manifest.outputs[name]} |")
    lines += ["", "| step | rows in | rows out | left out |", "|---|---|---|---|"]
    for name, counts in manifest.steps.items():
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.left_out.items())
        lines.append(f"| {name} | {counts.rows_in} | {counts.rows_out} | {reasons or '–'} |")
    lines += ["", "| model | name | engine | checkpoint |", "|---|---|---|---|"]
    for name, model in recipe.models.items():
        server = manifest.servers.get(name, {})
        hashes = [
            f"`{server[key]}`" if server.get(key) else "–" for key in ("engine", "checkpoint")
        ]
        served = model.model or server.get("model") or "–"
        lines.append(f"| {name} | {served} | {' | '.join(hashes)} |")
    lines += ["", "| input | SHA-256 |", "|---|---|"]
    for source in manifest.inputs:
        lines.append(f"| {source.path} | {f'`{source.sha256}`' if source.sha256 else 'a folder'} |")
    lines += [
        "",
        "Each row has an `id`, made of its content, and `provenance`: the stages and requests of",
        "the models' answers that it is made of.",
        "",
        "## License",
        "",
        LICENSE,
        "",
    ]
    return "\n".join(lines)
