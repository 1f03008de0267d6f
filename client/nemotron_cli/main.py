"""The command `nemotron`: a table of verbs, each loaded only when it is called.

A verb's module imports only typer at its top and its libraries when it runs. So each machine needs
only the extras of the verbs that it uses, and a missing extra is named.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nemotron_core.errors import NemotronError

# Pydantic would read the metadata of every installed package to look for its plug-ins.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

DISTRIBUTION = "nemotron-triton"
VERBS = {
    "demo": "nemotron_cli.commands",
    "inspect": "nemotron_convert.commands",
    "convert": "nemotron_convert.commands",
    "verify": "nemotron_convert.commands",
    "profiles": "nemotron_build.commands",
    "plan": "nemotron_build.commands",
    "build": "nemotron_build.commands",
    "doctor": "nemotron_serve.commands",
    "serve": "nemotron_serve.commands",
    "try": "nemotron_serve.commands",
    "clean": "nemotron_serve.commands",
    "gateway": "nemotron_gateway.commands",
    "chat": "nemotron_cli.commands",
    "batch": "nemotron_data.commands",
    "synthesize": "nemotron_data.commands",
    "compare": "nemotron_evaluate.commands",
    "eval": "nemotron_evaluate.commands",
    "redteam": "nemotron_evaluate.commands",
    "bench": "nemotron_bench.commands",
}
"""Module of each verb, with a function of the verb's name. `--help` lists them in this order."""
FUNCTIONS = {"try": "try_model"}
"""Functions of verbs whose name Python has taken."""

EXTRAS_OF_VERBS = {
    "demo": "cpu",
    "inspect": "convert",
    "convert": "convert",
    "verify": "calibrate",
    "plan": "convert",
    "build": "cpu",
    "doctor": "server",
    "serve": "cpu",
    "try": "cpu",
    "clean": "server",
    "gateway": "gateway",
    "chat": "client",
    "batch": "batch",
    "synthesize": "batch",
    "compare": "evaluate",
    "eval": "evaluate",
    "redteam": "evaluate",
    "bench": "bench",
}
"""Extra of this package that has everything a verb needs; a verb without an entry needs none."""

EXTRAS = {
    "ml_dtypes": "convert",
    "torch": "calibrate",
    "numcodecs": "convert",
    "safetensors": "convert",
    "sentencepiece": "convert",
    "tokenizers": "convert",
    "google": "client",
    "grpc": "client",
    "httpx": "evaluate",
    "aiohttp": "client",
    "jinja2": "batch",
    "tritonclient": "client",
    "msgspec": "batch",
    "prometheus_client": "gateway",
    "starlette": "gateway",
    "uvicorn": "gateway",
    "uvloop": "gateway",
    "matplotlib": "bench",
    "prompt_toolkit": "client",
    "openvino": "cpu",
    "openvino_genai": "cpu",
    "pytriton": "cpu",
}
"""Extra of this package that installs a module."""


class VerbGroup(TyperGroup):
    """The verbs of `VERBS` as commands.

    The annotations are `Any` because typer's own types differ from version to version.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all verbs."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load the verb `cmd_name` and return it, or return `None` if the table has none."""
        if cmd_name not in VERBS:
            return None
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        function = FUNCTIONS.get(cmd_name, cmd_name)
        extra = EXTRAS_OF_VERBS.get(cmd_name)
        # typer reads brackets as markup unless a backslash is in front of them
        epilog = rf"Needs pip install '{DISTRIBUTION}\[{extra}]'." if extra else None
        app.command(cmd_name, epilog=epilog)(getattr(import_module(VERBS[cmd_name]), function))
        return typer.main.get_command(app)


app = typer.Typer(
    cls=VerbGroup,
    help="NVIDIA Nemotron-4-340B-Instruct from its .nemo checkpoint to tokens on the wire.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version  # noqa: PLC0415 - it takes a tenth of a start

        typer.echo(f"nemotron {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def _nemotron(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Show the way through the verbs if none is named."""
    if context.invoked_subcommand is None:
        from nemotron_cli.journey import journey  # noqa: PLC0415

        typer.echo(journey(sys.stdout.isatty()))


def main() -> None:
    """Run one verb. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    if os.getpid() == 1:  # in a container the kernel drops signals of process 1 without a handler
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except NemotronError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        extra = _missing_extra(error.name or "", sys.argv[1:])
        if extra is None:
            raise
        _fail(f"{error.name} is not installed: pip install '{DISTRIBUTION}[{extra}]'", 1)


def _missing_extra(module: str, arguments: Sequence[str]) -> str | None:
    """Return the extra that installs a module, or else the one of the verb that needs it.

    Returns `None` for a module of this package: that it is missing is a bug.
    """
    package = module.partition(".")[0]
    if package.startswith("nemotron_"):
        return None
    verb = next((word for word in arguments if word in VERBS), "")
    return EXTRAS_OF_VERBS.get(verb, EXTRAS.get(package))


def _fail(message: str, exit_code: int) -> None:
    typer.echo(f"nemotron: {message}", err=True)
    sys.exit(exit_code)
