"""Overhead of the gateway over Triton's own HTTP: time to first token and tokens per second.

Two servers are asked directly and through the gateway, in turn in the same run, with 1, 16 and 64
streams:

- `tiny`: the whole stack with the tiny model on the CPU lane. Engine, gateway and client share this
  machine's cores, so the gateway takes its computing time from the engine.
- `paced`: a stand-in for Triton that sends 30 tokens a second on each stream, as a large model
  does. It shows whether the gateway keeps the pace, and what an event costs it.

The client is the same for both: sockets that look for the events of a stream and decode no more.
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

from bench.measurements.processes import cpu_seconds
from bench.measurements.servers import build_cpu_engine, gateway, serving
from bench.measurements.timing import in_turn, summary

STREAMS = (1, 16, 64)
PROMPT = "<extra_id_1>Go"
ROUTES = ("direct", "gateway")
MODEL = "nemotron-4-340b-instruct"
DIRECT_PATH = "/v2/models/tensorrt_llm_bls/generate_stream"
GATEWAY_PATH = "/v1/completions"


@dataclass(frozen=True)
class Stack:
    """A Triton server or its stand-in, with a gateway before it."""

    http_port: int
    gateway_port: int
    gateway_pid: int


@dataclass(frozen=True)
class Sample:
    """One measurement of all streams at once."""

    tokens_per_second: float
    first_token_seconds: float
    """Median over the streams."""
    events: int
    """Number of events that the client received."""
    gateway_seconds: float
    """CPU time of the gateway."""


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
    with serving(engine) as server, gateway(f"127.0.0.1:{server.http}") as front:
        yield Stack(server.http, front.port, front.process.pid)


@contextmanager
def paced_stack() -> Iterator[Stack]:
    """Run the stand-in for Triton."""
    command = [sys.executable, "-m", "bench.measurements.paced_triton"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        port = int(process.stdout.readline())
        with gateway(f"127.0.0.1:{port}") as front:
            yield Stack(port, front.port, front.process.pid)
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
            ratios = [a / b for a, b in zip(values["gateway"], values["direct"], strict=True)]
            row[name] = {route: summary(values[route]) for route in ROUTES}
            row[name]["ratio"] = summary(ratios)
        row["gateway_us_per_event"] = summary(
            [sample.gateway_seconds / sample.events * 1e6 for sample in samples["gateway"]]
        )
        rows.append(row)
        print(row, flush=True)
    return rows


async def measure_route(route: str, stack: Stack, streams: int, tokens: int) -> Sample:
    """Send `streams` requests at once by one route and wait for all answers."""
    body: dict[str, Any] = {"max_tokens": tokens, "min_tokens": tokens, "temperature": 0}
    if route == "direct":
        port, path = stack.http_port, DIRECT_PATH
        body |= {"text_input": PROMPT, "stream": True}
    else:
        port, path = stack.gateway_port, GATEWAY_PATH
        body |= {"model": MODEL, "prompt": PROMPT, "stream": True}
    cpu_before = cpu_seconds([stack.gateway_pid])
    start = time.monotonic()
    answers = await asyncio.gather(*(request(port, path, body) for _ in range(streams)))
    seconds = time.monotonic() - start
    return Sample(
        streams * tokens / seconds,
        statistics.median(first for first, _ in answers),
        sum(events for _, events in answers),
        cpu_seconds([stack.gateway_pid]) - cpu_before,
    )


async def request(port: int, path: str, body: dict[str, Any]) -> tuple[float, int]:
    """Return the seconds to the first event, and the number of events."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start, first, events, is_whole = time.monotonic(), 0.0, 0, False
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
    while (line := await reader.readline()) != b"0\r\n":
        if not line:
            raise SystemExit(f"port {port} closed the connection")
        if line.startswith(b"data: {"):
            first = first or time.monotonic() - start
            events += 1
            is_whole = is_whole or b'"length"' in line
    writer.close()
    if not is_whole:
        raise SystemExit(f"port {port} ended an answer before its length")
    return first, events
