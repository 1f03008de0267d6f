"""The command `nemotron`: a table of verbs, each loaded only when it is called.

A verb's module imports only typer at its top and its libraries when it runs. So each machine needs
only the extras of the verbs that it uses, and a missing extra is named.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nemotron_core.errors import NemotronError

# Pydantic would read the metadata of every installed package to look for its plug-ins.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

DISTRIBUTION = "nemotron-triton"
VERBS = {
    "inspect": "nemotron_convert.commands",
    "convert": "nemotron_convert.commands",
    "verify": "nemotron_convert.commands",
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
        app.command(cmd_name)(getattr(import_module(VERBS[cmd_name]), function))
        return typer.main.get_command(app)


app = typer.Typer(
    cls=VerbGroup,
    help="NVIDIA Nemotron-4-340B-Instruct from its .nemo checkpoint to tokens on the wire.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"nemotron {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def _nemotron(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Make typer build a group, although it knows no command: all verbs come from the table."""


def main() -> None:
    """Run one verb. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    if os.getpid() == 1:  # in a container the kernel drops signals of process 1 without a handler
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except NemotronError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(f"{error.name} is not installed: pip install 'nemotron-triton[{extra}]'", 1)


def _fail(message: str, exit_code: int) -> None:
    typer.echo(f"nemotron: {message}", err=True)
    sys.exit(exit_code)
