"""The verbs `profiles`, `plan` and `build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from nemotron_core.family import LARGEST


def profiles(
    name: Annotated[
        str | None, typer.Argument(help="Profile to show: a shipped one, or the path of a .yaml.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write the profile to, for your own changes."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it exists.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the shipped profiles, or show or write one of them."""
    import json

    from nemotron_build.profile import load_profile, profile_text, shipped_profiles
    from nemotron_build.profile_table import profile_rows, profile_table
    from nemotron_core.errors import NemotronError
    from nemotron_core.files import write_atomically

    if name is None:
        if output is not None:
            raise NemotronError(
                "no profile is named",
                where="-o",
                remedy=f"name one of {', '.join(shipped_profiles())}",
            )
        rows = profile_rows()
        typer.echo(json.dumps(rows, indent=2) if as_json else profile_table(rows))
        return
    profile, text = load_profile(name), profile_text(name)
    if output is not None:
        if output.exists() and not overwrite:
            raise NemotronError("the file exists", where=output, remedy="--overwrite replaces it")
        write_atomically(output, text)
        typer.echo(f"{output}: --profile {output} builds and serves with it")
    else:
        typer.echo(profile.model_dump_json(indent=2) if as_json else text.rstrip())


def plan(
    profile: Annotated[str, typer.Option(help="Name of a shipped profile, or path of a .yaml.")],
    gpu: Annotated[
        list[str] | None, typer.Option(help="GPU to plan for instead of the profile's. Repeatable.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint to plan for.")] = None,
    model: Annotated[
        str, typer.Option(help="Model of the family to plan for, without a checkpoint.")
    ] = LARGEST,
    weights: Annotated[
        Literal["bf16", "int8", "int4"] | None,
        typer.Option(help="CPU lane: type of the weights in memory, instead of the profile's."),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(help="What proposes tokens: a model of the family, a checkpoint, or ngram."),
    ] = None,
    draft_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=16, help="Tokens proposed in a step, instead of the profile's."),
    ] = None,
    acceptance: Annotated[
        float, typer.Option(help="Probability that a proposed token is right if those before are.")
    ] = 0.7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what fits on the GPUs of a profile, and how fast it can be at best."""
    import json

    from nemotron_build.draft_plan import draft_plan
    from nemotron_build.plan import plans
    from nemotron_build.profile import DRAFT_TOKENS, load_profile, with_weights

    chosen = with_weights(load_profile(profile), weights)
    serving_plans = plans(chosen, gpu or [], checkpoint, model)
    texts, dicts = [*map(str, serving_plans)], [item.as_dict() for item in serving_plans]
    if draft is not None:
        count = draft_tokens or int(getattr(chosen, "draft_tokens", DRAFT_TOKENS))
        drafts = [draft_plan(item, draft, count, acceptance) for item in serving_plans]
        texts = [f"{text}\n{gain}" for text, gain in zip(texts, drafts, strict=True)]
        dicts = [
            {**item, "draft": gain.as_dict()} for item, gain in zip(dicts, drafts, strict=True)
        ]
    typer.echo(json.dumps(dicts, indent=2) if as_json else "\n\n".join(texts))


def build(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint folder, written by `nemotron convert`.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Engine folder to create.")],
    profile: Annotated[str, typer.Option(help="Name of a shipped profile, or path of a .yaml.")],
    weights: Annotated[
        Literal["bf16", "int8", "int4"] | None,
        typer.Option(help="CPU lane: type of the weights in memory, instead of the profile's."),
    ] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Keep a complete engine of the same profile.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an engine that is there.")
    ] = False,
    wait: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to wait while another process writes the engine or, with --reuse, the"
            " checkpoint.",
        ),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command and the files, and build nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print engine.json.")] = False,
) -> None:
    """Build an engine from a checkpoint."""
    from contextlib import nullcontext

    from nemotron_build.engine_folder import (
        ENGINE_NAME,
        build_engine,
        describe_build,
        reuse_or_build,
    )
    from nemotron_build.profile import load_profile, with_weights
    from nemotron_core.errors import NemotronError
    from nemotron_core.existing import replacing, require_choice
    from nemotron_core.folder import retry_until_ready

    if reuse and overwrite:
        raise NemotronError("give --reuse or --overwrite, not both")
    chosen = with_weights(load_profile(profile), weights)
    if not reuse and not overwrite:
        require_choice(output, ENGINE_NAME, "engine")
    if dry_run:
        typer.echo(describe_build(checkpoint, output, chosen))
        return
    run = reuse_or_build if reuse else build_engine
    with replacing(output, ENGINE_NAME) if overwrite else nullcontext():
        record = retry_until_ready(lambda: run(checkpoint, output, chosen), wait)
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
        return
    size = sum(entry.size for entry in record.files.values())
    rounded = getattr(record.profile, "weights", "bf16")
    note = "" if rounded == "bf16" else f", weights in {rounded}"
    typer.echo(f"{output}: {size:,} bytes, lane {record.lane}, {record.profile.dtype}{note}")
