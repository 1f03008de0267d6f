"""What the gateway costs beside direct gRPC: time to first token and tokens per second.

    python -m bench.measurements.gateway_overhead CHECKPOINT [--runs 5] [--tokens 200] [--json OUT]

Two sources, each asked both ways by turns in the same run, with 1, 16 and 64 streams:

- `tiny`: the whole stack with the tiny model on the CPU lane. Engine, gateway and the program that
  asks share this machine's cores, so whatever the gateway computes the engine cannot.
- `paced`: a stand-in for Triton that sends 30 tokens a second on each stream, as a large model
  does. Whether the gateway keeps the pace is seen here, and how much of a core it takes.

The asking program is the same asyncio process for both ways: `AsyncClient`, or plain sockets that
look for the events of a stream and no further.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import psutil
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.measurements.convert_speed import machine
from nemotron_build.engine_folder import build_engine
from nemotron_build.profile import load_profile
from nemotron_client import AsyncClient, Generation
from nemotron_serve.server import TritonServer

STREAMS = (1, 16, 64)
PACE = 30.0
"""Tokens per second on each stream of the stand-in."""
PROMPT = "<extra_id_1>Go"
WAYS = ("grpc", "gateway")
MODEL = "nemotron-4-340b-instruct"


@dataclass(frozen=True)
class Ports:
    grpc: int
    gateway: int
    process: psutil.Process
    """Of the gateway."""


@dataclass(frozen=True)
class Measured:
    tokens_per_second: float
    first_token_seconds: float
    """The median over the streams."""
    gateway_core: float
    """How much of a core the gateway took."""


async def ask_grpc(client: AsyncClient, tokens: int) -> tuple[float, int]:
    """Seconds to the first piece, and pieces."""
    generation = Generation(max_tokens=tokens, min_tokens=tokens, temperature=0.0)
    began, first, count = time.monotonic(), 0.0, 0
    async for piece in client.stream_complete(PROMPT, generation):
        first = first or time.monotonic() - began
        count = piece.num_output_tokens
    return first, count


async def ask_gateway(port: int, tokens: int) -> tuple[float, int]:
    """The same over HTTP."""
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
    began, first = time.monotonic(), 0.0
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    usage = b""
    while (line := await reader.readline()) and line != b"data: [DONE]\n":
        if line.startswith(b"data: "):
            first = first or time.monotonic() - began
            usage = line
    writer.close()
    return first, json.loads(usage[6:])["usage"]["completion_tokens"]


async def measure(way: str, ports: Ports, streams: int, tokens: int) -> Measured:
    """All streams at once, once."""
    async with AsyncClient(f"127.0.0.1:{ports.grpc}") as client:
        await ask_grpc(client, 2)  # connected
        cpu = sum(ports.process.cpu_times()[:2])
        began = time.monotonic()
        if way == "grpc":
            asked = [ask_grpc(client, tokens) for _ in range(streams)]
        else:
            asked = [ask_gateway(ports.gateway, tokens) for _ in range(streams)]
        found = await asyncio.gather(*asked)
        seconds = time.monotonic() - began
        cpu = sum(ports.process.cpu_times()[:2]) - cpu
    assert all(count == tokens for _, count in found), found
    first = statistics.median(first for first, _ in found)
    return Measured(streams * tokens / seconds, first, cpu / seconds)


@contextmanager
def gateway(triton: str, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Its port and process."""
    port_file = folder / "gateway.json"
    command = [sys.executable, "-m", "nemotron_cli", "gateway", "--triton", triton, "--port", "0"]
    command += ["--no-access-log", "--port-file", str(port_file)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not port_file.exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield json.loads(port_file.read_text())["gateway"], psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


@contextmanager
def tiny(checkpoint: Path, folder: Path) -> Iterator[Ports]:
    profile = load_profile("cpu")
    free = dict.fromkeys(type(profile.ports).model_fields, 0)
    profile = profile.model_copy(update={"ports": profile.ports.model_copy(update=free)})
    build_engine(checkpoint, folder / "engine", profile)
    with TritonServer(folder / "engine", profile) as server:
        port = server.endpoints.grpc
        with gateway(f"127.0.0.1:{port}", folder) as (http, process):
            yield Ports(port, http, process)


@contextmanager
def paced(folder: Path) -> Iterator[Ports]:
    command = [sys.executable, "-m", "bench.measurements.gateway_overhead", "--stand-in"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        port = int(process.stdout.readline())
        with gateway(f"127.0.0.1:{port}", folder) as (http, gateway_process):
            yield Ports(port, http, gateway_process)
    finally:
        process.kill()
        process.wait()


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with as many tokens as asked, one each 1/PACE seconds."""

    async def ModelStreamInfer(self, requests, context):  # noqa: N802
        async for request in requests:
            names = [one.name for one in request.inputs]
            raw = request.raw_input_contents[names.index("max_tokens")]
            tokens = int.from_bytes(raw, "little")
            began = time.monotonic()
            for number in range(1, tokens + 1):
                await asyncio.sleep(began + number / PACE - time.monotonic())
                yield service_pb2.ModelStreamInferResponse(infer_response=response(number, tokens))


def response(number: int, tokens: int) -> service_pb2.ModelInferResponse:
    """One token, with everything that the ensemble sends beside it."""
    made = service_pb2.ModelInferResponse(model_name="ensemble")
    last = b"length" if number == tokens else b""
    for name, kind, raw in (
        ("text_output", "BYTES", b"\x05\0\0\0 word"),
        ("output_token_ids", "INT32", number.to_bytes(4, "little")),
        ("finish_reason", "BYTES", len(last).to_bytes(4, "little") + last),
        ("stop_reason", "BYTES", b"\0\0\0\0"),
        ("num_input_tokens", "INT32", b"\x05\0\0\0"),
        ("num_output_tokens", "INT32", number.to_bytes(4, "little")),
        ("sequence_index", "INT32", b"\0\0\0\0"),
    ):
        made.outputs.add(name=name, datatype=kind, shape=[1, 1])
        made.raw_output_contents.append(raw)
    return made


async def stand_in() -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(StandIn(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


def compare(ports: Ports, runs: int, tokens: int, source: str) -> list[dict]:
    """Both ways by turns; the first turn only warms up."""
    rows = []
    for streams in STREAMS:
        found: dict[str, list[Measured]] = {way: [] for way in WAYS}
        for number in range(runs + 1):
            for way in WAYS if number % 2 else reversed(WAYS):
                measured = asyncio.run(measure(way, ports, streams, tokens))
                if number:
                    found[way].append(measured)
        row: dict = {"source": source, "streams": streams}
        for name in ("tokens_per_second", "first_token_seconds"):
            values = {way: [getattr(one, name) for one in found[way]] for way in WAYS}
            ratios = [a / b for a, b in zip(values["gateway"], values["grpc"], strict=True)]
            row[name] = {way: spread(values[way]) for way in WAYS} | {"ratio": spread(ratios)}
        row["gateway_core"] = spread([one.gateway_core for one in found["gateway"]])
        rows.append(row)
        print(line(row), flush=True)
    return rows


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def line(row: dict) -> str:
    def show(found: dict[str, float], digits: int, scale: float = 1) -> str:
        low, mid, high = (f"{found[k] * scale:,.{digits}f}" for k in ("min", "median", "max"))
        return f"{mid} ({low}–{high})"

    rate, first = row["tokens_per_second"], row["first_token_seconds"]
    return (
        f"{row['source']:6} {row['streams']:3} streams: tokens/s {show(rate['grpc'], 0)} direct, "
        f"{show(rate['gateway'], 0)} gateway, ratio {show(rate['ratio'], 3)}; first token ms "
        f"{show(first['grpc'], 1, 1000)} direct, {show(first['gateway'], 1, 1000)} gateway; "
        f"gateway takes {show(row['gateway_core'], 2)} of a core"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--stand-in", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stand_in:
        asyncio.run(stand_in())
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if options.checkpoint:
            with tiny(options.checkpoint, Path(folder)) as ports:
                rows += compare(ports, options.runs, options.tokens, "tiny")
    with tempfile.TemporaryDirectory() as folder, paced(Path(folder)) as ports:
        rows += compare(ports, options.runs, options.tokens, "paced")
    if options.json:
        result = {"machine": machine(), "runs": options.runs, "tokens": options.tokens}
        options.json.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
