"""The command `nemotron`: all verbs, none of their libraries.

A verb's module imports only typer at its top; what it works with is imported when it runs. So each
machine needs only the extras of the verbs it uses, and a missing one is named.
"""

from __future__ import annotations

import os
import signal
import sys

import typer

from nemotron_bench.commands import bench
from nemotron_build.commands import build, doctor, plan, serve
from nemotron_cli.commands import chat
from nemotron_convert.commands import convert, inspect, verify
from nemotron_core.errors import NemotronError
from nemotron_data.commands import batch, synthesize
from nemotron_gateway.commands import gateway

EXTRAS = {
    "ml_dtypes": "convert",
    "torch": "calibrate",
    "numcodecs": "convert",
    "safetensors": "convert",
    "sentencepiece": "convert",
    "tokenizers": "convert",
    "grpc": "client",
    "httpx": "batch",
    "jinja2": "batch",
    "tritonclient": "client",
    "prometheus_client": "gateway",
    "starlette": "gateway",
    "uvicorn": "gateway",
    "uvloop": "gateway",
    "openvino": "cpu",
    "openvino_genai": "cpu",
    "pytriton": "cpu",
}

app = typer.Typer(
    help="NVIDIA Nemotron-4-340B-Instruct from its .nemo checkpoint to tokens on the wire.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    *(inspect, convert, verify, plan, build, doctor, serve),
    *(gateway, chat, batch, synthesize, bench),
):
    app.command()(verb)


def main() -> None:
    """Run one verb. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    if os.getpid() == 1:  # of a container: the kernel drops signals that nobody handles
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
