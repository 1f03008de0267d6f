"""The shipped profiles as rows, and as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_build.profile import Profile, load_profile, profile_text, shipped_profiles

HEAD = ("profile", "lane", "runs on", "weights", "requests at once", "tokens a request")


def profile_rows() -> list[dict[str, str | int]]:
    """Return the name of each shipped profile, what it runs on and its limits."""
    return [_row(name, load_profile(name)) for name in shipped_profiles()]


def profile_table(rows: Sequence[dict[str, str | int]]) -> str:
    """Return the rows as aligned lines, and how to go on."""
    cells = [HEAD, *(tuple(map(str, (*row.values(),)[: len(HEAD)])) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    example = rows[0]["profile"]
    return "\n".join(
        [
            *lines,
            "",
            f"nemotron profiles {example}               shows one",
            f"nemotron profiles {example} -o my.yaml    writes it, to be changed and used as"
            " --profile my.yaml",
        ]
    )


def _row(name: str, profile: Profile) -> dict[str, str | int]:
    limits = profile.limits
    return {
        "profile": name,
        "lane": profile.lane,
        "runs_on": _machines(profile),
        "weights": getattr(profile, "weights", profile.dtype),
        "max_batch_size": limits.max_batch_size,
        "max_seq_len": limits.max_seq_len,
        "about": profile_text(name).partition("\n")[0].removeprefix("# "),
    }


def _machines(profile: Profile) -> str:
    gpu, split = getattr(profile, "gpu", None), getattr(profile, "split", None)
    if gpu is None or split is None:
        return "any CPU"
    newer = " or newer" if gpu.or_newer else ""
    nodes = f"{split.nodes} nodes of " if split.nodes > 1 else ""
    return f"{nodes}{split.gpus_per_node} × {gpu.name} {gpu.memory_gib} GB{newer}"
