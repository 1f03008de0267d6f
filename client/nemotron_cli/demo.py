"""The whole way on this machine: the tiny `.nemo` to a checkpoint, an engine, Triton, answers."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from nemotron_core.errors import NemotronError
from nemotron_core.resources import resource
from nemotron_core.safe_path import SAFE_PATH

MODEL = "tiny_nemotron.nemo"
ENGINE = "engine"
QUESTION = "Why is the sky blue?"
JAPANESE_QUESTION = "日本の四季について教えてください。"
TURNS = ("Hi! My name is Mia and I love tea.", "What is my name, and what should I drink?")
"""A conversation whose second turn cannot be answered without the first."""
POLL_SECONDS = 0.1


def run_demo(folder: Path, *, leave: bool, free_ports: bool) -> None:
    """Convert, build and serve the tiny model in `folder`, and ask it.

    A checkpoint and an engine of an earlier demo in `folder` are replaced. The server then serves
    until Ctrl-C, unless `leave`. Raises `NemotronError` if a step fails.
    """
    model = resource(__file__, "tests/tiny_nemotron") / MODEL
    if model.is_relative_to(Path.cwd()):  # as one types it in a checkout
        model = model.relative_to(Path.cwd())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=folder) from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server must not outlive this
    checkpoint, engine = folder / "checkpoint", folder / ENGINE
    _step("inspect", str(model))
    _step("convert", str(model), "-o", str(checkpoint), "--tp", "8", "--overwrite")
    _step("build", str(checkpoint), "-o", str(engine), "--profile", "cpu", "--overwrite")
    with _server(engine, folder, free_ports=free_ports) as (server, url):
        _step("chat", "--url", url, QUESTION)
        _say("A conversation: the second turn needs the first.")
        turns = "\n".join(TURNS)
        typer.echo("\n".join(f"> {turn}" for turn in TURNS))
        _run("chat", "--url", url, stdin=turns)
        _step("chat", "--url", url, JAPANESE_QUESTION)
        if not leave:
            typer.echo(
                f"\nThe server stays up. In another terminal:\n  {_program()} chat --url {url}\n"
                "Ctrl-C drains and stops."
            )
            with suppress(KeyboardInterrupt):
                server.wait()


@contextmanager
def _server(
    engine: Path, folder: Path, *, free_ports: bool
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start the server. Yields its process and its address for clients; stops it at the end."""
    ports = folder / "ports.json"
    ports.unlink(missing_ok=True)
    words = ["serve", str(engine), *(["--free-ports"] if free_ports else [])]
    _say_command(words)
    server = subprocess.Popen(
        _command(*words, *("--port-file", str(ports), "--log-file", str(folder / "server.log"))),
        env=os.environ | SAFE_PATH,
    )
    try:
        while not ports.exists():
            if server.poll() is not None:
                raise NemotronError(f"the server ended with status {server.returncode}")
            time.sleep(POLL_SECONDS)
        yield server, f"127.0.0.1:{json.loads(ports.read_text(encoding='utf-8'))['grpc']}"
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        with suppress(KeyboardInterrupt):
            server.wait()
        server.wait()


def _step(*words: str) -> None:
    """Show a command and run it. Raises `NemotronError` if it fails."""
    _say_command(words)
    _run(*words)


def _run(*words: str, stdin: str | None = None) -> None:
    done = subprocess.run(
        _command(*words),
        env=os.environ | SAFE_PATH,
        input=stdin.encode() if stdin is not None else None,
        stdin=subprocess.DEVNULL if stdin is None else None,
        check=False,
    )
    if done.returncode:
        raise NemotronError(f"nemotron {words[0]} ended with status {done.returncode}")


def _program() -> str:
    """Return the command as it can be typed here."""
    own = Path(sys.executable).with_name("nemotron")
    return "nemotron" if shutil.which("nemotron") or not own.exists() else str(own)


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "nemotron_cli", *words]


def _say_command(words: Sequence[str]) -> None:
    _say(f"$ {shlex.join(['nemotron', *words])}")


def _say(text: str) -> None:
    """Print a line in bold on a terminal, after an empty one."""
    typer.secho(f"\n{text}", bold=True)
    sys.stdout.flush()
