"""The verbs `batch` and `synthesize`."""

from __future__ import annotations

import json

import typer

from nemotron_core.command_options import takes
from nemotron_data.options import BatchOptions, Runner, SynthesisOptions, check_runner


@takes(BatchOptions)
def batch(options: BatchOptions) -> None:
    """Answer every row of a file, each exactly once. The same command again continues the run.

    The server's API key is read from the environment variable NEMOTRON_API_KEY or OPENAI_API_KEY.
    """
    from nemotron_core.errors import NemotronError
    from nemotron_data.batch.interruption import Interrupted
    from nemotron_data.batch.job import Job
    from nemotron_data.batch.target import target_of
    from nemotron_data.rows.shard import Shard
    from nemotron_data.rows.source import STREAM

    check_runner(options)
    try:
        if options.runner is Runner.RAY and not options.dry_run:
            from nemotron_data.ray_runner import batch_on_ray

            counts = batch_on_ray(options)
            output = Shard(0, options.shards or 1).output(options.output)
        else:
            job = Job(options, options.defaults)
            counts, output = job.run(), job.output
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    if counts.failed:
        where = "standard output" if output == STREAM else str(target_of(output).errors)
        if options.runner is Runner.RAY:
            where = where.replace("-00000-of-", "-*-of-")
        raise NemotronError(
            f"{counts.failed} of {counts.failed + counts.finished} rows failed",
            where=where,
            remedy="each is there with its reason; the same command tries them again",
        )


@takes(SynthesisOptions)
def synthesize(options: SynthesisOptions) -> None:
    """Make training data by the steps of a recipe. The same command again continues the run.

    The servers' API key is read from the environment variable NEMOTRON_API_KEY or OPENAI_API_KEY,
    unless the recipe names another one.
    """
    from rich.console import Console

    from nemotron_data.batch.interruption import Interrupted
    from nemotron_data.synthesis.preview import preview_table
    from nemotron_data.synthesis.run import folder_of
    from nemotron_data.synthesis.run import synthesize as run

    check_runner(options)
    try:
        if options.runner is Runner.RAY:
            from nemotron_data.ray_runner import synthesize_on_ray

            manifests = synthesize_on_ray(options)
            outputs = [manifest.outputs for manifest in manifests]
            typer.echo(json.dumps({"outputs": outputs}, indent=2))
            return
        manifest = run(options)
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    if options.preview is not None:
        table = preview_table(folder_of(options), manifest, options.preview)
        Console().print(table, markup=False)
        return
    counts = {name: step.model_dump() for name, step in manifest.steps.items()}
    typer.echo(json.dumps({"steps": counts, "outputs": manifest.outputs}, indent=2))
