"""Overhead of the gateway over direct gRPC: time to first token and tokens per second.

Two servers are measured by gRPC and through the gateway, in turn in the same run, with 1, 16 and 64
streams:

- `tiny`: the whole stack with the tiny model on the CPU lane. Engine, gateway and client share this
  machine's cores, so the gateway takes its computing time from the engine.
- `paced`: a stand-in for Triton that sends 30 tokens a second on each stream, as a large model
  does. It shows whether the gateway keeps the pace, and how much of a core it takes.

The client is the same asyncio process for both: `AsyncClient`, or plain sockets that look for the
events of a stream and decode no more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measurements.servers import Gateway, build_cpu_engine, gateway, serving
from bench.measurements.timing import in_turn, summary
from nemotron_client import AsyncClient, Generation

STREAMS = (1, 16, 64)
PROMPT = "<extra_id_1>Go"
ROUTES = ("grpc", "gateway")
MODEL = "nemotron-4-340b-instruct"


@dataclass(frozen=True)
class Stack:
    """A Triton server or its stand-in, with a gateway before it."""

    grpc_port: int
    gateway: Gateway


@dataclass(frozen=True)
class Sample:
    """One measurement of all streams at once."""

    tokens_per_second: float
    first_token_seconds: float
    """Median over the streams."""
    gateway_core: float
    """Fraction of a core that the gateway used."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint of the tiny model")
    parser.add_argument("--tokens", type=int, default=200, help="tokens per answer, default 200")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tiny_stack(options.checkpoint, options.work) as stack:
        rows = compare(stack, options.runs, options.tokens, "tiny")
    with paced_stack() as stack:
        rows += compare(stack, options.runs, options.tokens, "paced")
    return {"rows": rows}


@contextmanager
def tiny_stack(checkpoint: Path, folder: Path) -> Iterator[Stack]:
    """Serve the tiny model on Triton."""
    engine = folder / "engine"
    if not engine.exists():
        build_cpu_engine(checkpoint, engine)
    with serving(engine) as server:
        port = server.endpoints.grpc
        with gateway(f"127.0.0.1:{port}") as running:
            yield Stack(port, running)


@contextmanager
def paced_stack() -> Iterator[Stack]:
    """Run the stand-in for Triton."""
    command = [sys.executable, "-m", "bench.measurements.paced_triton"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        port = int(process.stdout.readline())
        with gateway(f"127.0.0.1:{port}") as running:
            yield Stack(port, running)
    finally:
        process.kill()
        process.wait()


def compare(stack: Stack, runs: int, tokens: int, source: str) -> list[dict[str, Any]]:
    """Measure both routes in turn, after one run that only warms up. Returns a row per load."""
    rows = []
    for streams in STREAMS:
        samples: dict[str, list[Sample]] = {route: [] for route in ROUTES}
        for run, route in in_turn(runs + 1, ROUTES):
            sample = asyncio.run(measure_route(route, stack, streams, tokens))
            if run:
                samples[route].append(sample)
        row: dict[str, Any] = {"source": source, "streams": streams}
        for name in ("tokens_per_second", "first_token_seconds"):
            values = {
                route: [getattr(sample, name) for sample in samples[route]] for route in ROUTES
            }
            ratios = [a / b for a, b in zip(values["gateway"], values["grpc"], strict=True)]
            row[name] = {route: summary(values[route]) for route in ROUTES}
            row[name]["ratio"] = summary(ratios)
        row["gateway_core"] = summary([sample.gateway_core for sample in samples["gateway"]])
        rows.append(row)
        print(row, flush=True)
    return rows


async def measure_route(route: str, stack: Stack, streams: int, tokens: int) -> Sample:
    """Send `streams` requests at once by one route and wait for all answers."""
    process = stack.gateway.process
    async with AsyncClient(f"127.0.0.1:{stack.grpc_port}") as client:
        await request_by_grpc(client, 2)  # connects
        cpu_before = sum(process.cpu_times()[:2])
        start = time.monotonic()
        if route == "grpc":
            requests = [request_by_grpc(client, tokens) for _ in range(streams)]
        else:
            requests = [request_by_http(stack.gateway.port, tokens) for _ in range(streams)]
        answers = await asyncio.gather(*requests)
        seconds = time.monotonic() - start
        cpu_seconds = sum(process.cpu_times()[:2]) - cpu_before
    assert all(count == tokens for _, count in answers), answers
    first_token = statistics.median(first for first, _ in answers)
    return Sample(streams * tokens / seconds, first_token, cpu_seconds / seconds)


async def request_by_grpc(client: AsyncClient, tokens: int) -> tuple[float, int]:
    """Return the seconds to the first piece, and the number of tokens."""
    generation = Generation(max_tokens=tokens, min_tokens=tokens, temperature=0.0)
    start, first, count = time.monotonic(), 0.0, 0
    async for piece in client.stream_complete(PROMPT, generation):
        first = first or time.monotonic() - start
        count = piece.num_output_tokens
    return first, count


async def request_by_http(port: int, tokens: int) -> tuple[float, int]:
    """Return the seconds to the first event, and the number of tokens."""
    body = json.dumps(
        {
            "model": MODEL,
            "prompt": PROMPT,
            "max_tokens": tokens,
            "min_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start, first = time.monotonic(), 0.0
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    last_event = b""
    while (line := await reader.readline()) and line != b"data: [DONE]\n":
        if line.startswith(b"data: "):
            first = first or time.monotonic() - start
            last_event = line
    writer.close()
    return first, json.loads(last_event[6:])["usage"]["completion_tokens"]
