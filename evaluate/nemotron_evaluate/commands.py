"""The verb `compare`."""

from __future__ import annotations

import typer

from nemotron_core.command_options import takes
from nemotron_evaluate.options import CompareOptions


@takes(CompareOptions)
def compare(options: CompareOptions) -> None:
    """Compare two servers token by token. The same command again continues the run.

    The servers' API key is read from the environment variable NEMOTRON_API_KEY or OPENAI_API_KEY.
    """
    from nemotron_data.batch.run import Interrupted
    from nemotron_evaluate.comparison.report import markdown
    from nemotron_evaluate.comparison.run import check_limits, run

    try:
        result = run(options)
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    if result is not None:
        typer.echo(markdown(result))
        check_limits(result, options)
