"""The verbs `compare`, `eval` and `redteam`."""

from __future__ import annotations

import typer

from nemotron_core.command_options import takes
from nemotron_evaluate.options import CompareOptions, EvalOptions, RedteamOptions


@takes(CompareOptions)
def compare(options: CompareOptions) -> None:
    """Compare two servers token by token. The same command again continues the run.

    The servers' API key is read from the environment variable NEMOTRON_API_KEY or OPENAI_API_KEY.
    """
    from nemotron_data.batch.interruption import Interrupted
    from nemotron_evaluate.comparison.report import markdown
    from nemotron_evaluate.comparison.run import check_limits, run

    try:
        result = run(options)
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    if result is not None:
        typer.echo(markdown(result))
        check_limits(result, options)


@takes(EvalOptions)
def eval(options: EvalOptions) -> None:
    """Run benchmarks with the field's harnesses. The same command again continues the run.

    `nemotron eval install HARNESS` installs a harness in an environment of its own. The server's
    API key is read from the environment variable NEMOTRON_API_KEY or OPENAI_API_KEY, a judge's
    from NEMOTRON_JUDGE_API_KEY or OPENAI_API_KEY.
    """
    from nemotron_core.errors import NemotronError
    from nemotron_data.batch.interruption import Interrupted
    from nemotron_evaluate.evaluation.report import markdown
    from nemotron_evaluate.evaluation.run import INSTALL, install, run

    try:
        if options.suite == INSTALL:
            if options.harness is None:
                raise NemotronError("no harness is named", where="nemotron eval install")
            typer.echo(install(options.harness, options.environments))
            return
        if options.harness is not None:
            raise NemotronError(f"{options.harness} is too much", where="nemotron eval SUITE")
        typer.echo(markdown(run(options)))
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None


@takes(RedteamOptions)
def redteam(options: RedteamOptions) -> None:
    """Attack a server with garak's probes. The same command again goes on with what is left.

    `nemotron eval install garak` installs it. The server's API key is read from the environment
    variable NEMOTRON_API_KEY or OPENAI_API_KEY.
    """
    from nemotron_data.batch.interruption import Interrupted
    from nemotron_evaluate.redteam.result import markdown
    from nemotron_evaluate.redteam.run import run

    try:
        typer.echo(markdown(run(options)))
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
