"""Sends the same request with both clients."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nemotron_client import AsyncClient, Client, Generation, Piece, Retries
from tests.tools import debian_program

ENDLESS = Generation(max_tokens=4000, end_id=0)
SHORT = Generation(max_tokens=20)
GO = "<extra_id_1>Go"
ONCE = Retries(attempts=1)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a key and of its certificate for 127.0.0.1."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [debian_program("openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key)]
    subprocess.run([*command, "-out", str(certificate)], check=True, capture_output=True)
    return key, certificate


def complete_with_each(
    url: str, prompt: Any, generation: Generation = SHORT, **options: Any
) -> Piece:
    """Return the answer, which must be the same with each client."""

    async def ask() -> Piece:
        async with AsyncClient(url, **options) as client:
            (piece,) = [piece async for piece in client.generate(prompt, generation)]
            return piece

    with Client(url, **options) as client:
        (piece,) = client.generate(prompt, generation)
    assert asyncio.run(ask()) == piece
    return piece


def fail_with_each(
    url: str, error: type[Exception], match: str, generation: Generation = ENDLESS, **options: Any
) -> None:
    """Check that each client raises `error`, streaming or not."""

    async def ask(stream: bool) -> None:
        async with AsyncClient(url, **options) as client:
            with pytest.raises(error, match=match):
                async for _ in client.generate(GO, generation, stream=stream):
                    pass

    with Client(url, **options) as client:
        for stream in (False, True):
            with pytest.raises(error, match=match):
                list(client.generate(GO, generation, stream=stream))
            asyncio.run(ask(stream))
