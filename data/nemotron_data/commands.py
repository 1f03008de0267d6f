"""The verbs `batch` and `synthesize`."""

from __future__ import annotations

import typer

from nemotron_core.command_options import takes
from nemotron_data.options import BatchOptions, SynthesisOptions


@takes(BatchOptions)
def batch(options: BatchOptions) -> None:
    """Answer every row of a file, each exactly once. The same command again continues the run.

    The server's API key is read from the environment variable NEMOTRON_API_KEY or OPENAI_API_KEY.
    """
    from nemotron_core.errors import NemotronError
    from nemotron_data.batch.job import Job
    from nemotron_data.batch.run import Interrupted
    from nemotron_data.batch.target import target_of
    from nemotron_data.rows.source import STREAM

    try:
        counts = Job(options, options.defaults).run()
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    if counts.failed:
        output = options.output
        raise NemotronError(
            f"{counts.failed} of {counts.failed + counts.finished} rows failed",
            where="standard output" if output == STREAM else target_of(output).errors,
            remedy="each is there with its reason; the same command tries them again",
        )


@takes(SynthesisOptions)
def synthesize(options: SynthesisOptions) -> None:
    """Make training data: generate, score, keep. The same command again continues the run."""
    from nemotron_data.batch.run import Interrupted
    from nemotron_data.synthesis.synthesize import synthesize as run

    try:
        report = run(options)
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    typer.echo(report.model_dump_json(indent=2))
