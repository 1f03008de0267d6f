"""How much of an engine's tokens the serving path carries, at what cost, against an earlier commit.

The synthetic engine gives each stream 120 tokens a second. A client in C asks for answers in a
closed loop: of the engine itself, of both text models over gRPC, and of the gateway. With
`--against COMMIT` the same loads run on a server of that commit too, in turn. The results are
compared with the limits in `LIMITS`.

Client, Triton and engine share the machine's cores, so a busy machine lowers all fractions.
"""

from __future__ import annotations

import argparse
import operator
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measurements.earlier_server import EarlierCommit
from bench.measurements.load_client import (
    LoadClient,
    Route,
    engine_socket,
    openai_sse,
    result_of,
    triton_grpc,
)
from bench.measurements.processes import command_of, cpu_seconds, family
from bench.measurements.servers import (
    Engine,
    Server,
    build_cpu_engine,
    serving,
    synthetic_engine,
)
from bench.measurements.synthetic_engine import DEFAULT_HZ
from bench.measurements.timing import summary

MODEL = "nemotron-4-340b-instruct"
ROUTES: Mapping[str, Callable[[Server, int], Route]] = {
    "direct": lambda server, tokens: triton_grpc(server.grpc, "tensorrt_llm_bls", tokens),
    "ensemble": lambda server, tokens: triton_grpc(server.grpc, "ensemble", tokens),
    "gateway": lambda server, tokens: openai_sse(server.gateway, MODEL, tokens),
}
LOADS = (
    *((route, 256, tokens) for route in ROUTES for tokens in (300, 900)),
    *((route, 32, 300) for route in ("direct", "ensemble")),
)
"""Route, number of streams, tokens of each answer."""
STREAMS = 256
BUILD_LIMITS = {"max_batch_size": STREAMS + 8, "max_queue_size": 512}
"""The server's own canaries have room beside the streams."""
RAMP_SECONDS = 2.5
"""Time in which the streams start, so that their answers do not end together."""
WARM_SECONDS = 4.0
CALIBRATION_TOKENS = 300
"""The synthetic engine's ids repeat after 100, so longer answers have the same mean size."""
IDLE_CORES, IDLE_SECONDS = 0.1, 60
"""A server counts as idle below this; it has this much time to become idle after a load."""
NEW, OLD = "new", "old"
Sample = dict[str, float]
Samples = dict[str, list[Sample]]
"""The samples of all rounds, by load; see `label`."""


@dataclass(frozen=True)
class Limit:
    """A limit, and the load and the quantity that it limits."""

    load: str
    quantity: str
    bound: float
    at_least: bool = False
    relative_to: str | None = None
    """Load of the earlier server whose quantity the value is divided by."""


LIMITS = (
    Limit("direct 256x300", "fraction", 0.95, at_least=True),
    Limit("direct 256x900", "fraction", 0.98, at_least=True),
    Limit("ensemble 256x300", "fraction", 0.90, at_least=True),
    Limit("ensemble 256x900", "fraction", 0.97, at_least=True),
    Limit("direct 256x300", "cpu_us_per_response", 0.35, relative_to="ensemble 256x300"),
    Limit("ensemble 256x300", "cpu_us_per_response", 0.75, relative_to="ensemble 256x300"),
    Limit("direct 32x300", "cores", 0.45),
    Limit("ensemble 32x300", "cores", 0.6),
    Limit("direct 32x300", "fraction", 0.98, at_least=True),
    Limit("ensemble 32x300", "fraction", 0.98, at_least=True),
    Limit("direct 256x300", "ttft_p50_steps", 3),
    Limit("ensemble 256x300", "ttft_p50_steps", 5),
    Limit("gateway 256x300", "gateway_us_per_event", 0.4, relative_to="gateway 256x300"),
    Limit("gateway 256x300", "fraction_of_direct", 0.95, at_least=True),
    Limit("gateway 256x900", "fraction_of_direct", 0.95, at_least=True),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint of the tiny model")
    parser.add_argument("--against", metavar="COMMIT", help="earlier commit to measure in turn")
    parser.add_argument("--seconds", type=float, default=10, help="of each load, default 10")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    client = LoadClient(options.work)
    folder = build_cpu_engine(options.checkpoint, options.work / "engine", BUILD_LIMITS)
    samples: dict[str, Samples] = {NEW: {}} | ({OLD: {}} if options.against else {})
    with ExitStack() as stack:
        commit = None
        if options.against:
            commit = stack.enter_context(EarlierCommit(options.against, options.work))
            commit.build(options.checkpoint, options.work / "engine-old", BUILD_LIMITS)
        for number in range(options.runs):
            with all_servers(folder, commit, options.work / "engine-old") as (engine, servers):
                target = engine_socket(engine.socket, 300)
                sample = measure_route(client, target, STREAMS, options.seconds, [], engine)
                samples[NEW].setdefault(label("engine", STREAMS, 300), []).append(sample)
                sizes = {
                    version: bytes_per_token(client, server) for version, server in servers.items()
                }
                for route, streams, tokens in LOADS:
                    name = label(route, streams, tokens)
                    for version in samples if number % 2 else reversed(samples):
                        server = servers[version]
                        pids = family([server.pid], without=[engine.pid])
                        target = ROUTES[route](server, tokens)
                        sample = measure_route(
                            client, target, streams, options.seconds, pids, engine, sizes[version]
                        )
                        samples[version].setdefault(name, []).append(sample)
                        print(f"{number + 1}: {version} {name}: {sample}", flush=True)
    return results(samples)


@contextmanager
def all_servers(
    folder: Path, commit: EarlierCommit | None, old_folder: Path
) -> Iterator[tuple[Engine, dict[str, Server]]]:
    """Start the engine, and the servers by version. They are fresh in each round."""
    with ExitStack() as stack:
        servers = {}
        if commit is not None:
            servers[OLD] = stack.enter_context(commit.serving(old_folder))
        engine = stack.enter_context(synthetic_engine(folder, DEFAULT_HZ))
        arguments = ("--engine-socket", str(engine.socket))
        servers[NEW] = stack.enter_context(serving(folder, *arguments))
        yield engine, servers


def bytes_per_token(client: LoadClient, server: Server) -> float:
    """Return the size of a token in the gateway's text, from one whole answer."""
    route = ROUTES["gateway"](server, CALIBRATION_TOKENS)
    seconds = 2 * CALIBRATION_TOKENS / DEFAULT_HZ
    return result_of(client.start(route, 1, seconds=seconds), seconds).bytes_per_token


def measure_route(
    client: LoadClient,
    route: Route,
    streams: int,
    seconds: float,
    pids: list[int],
    engine: Engine,
    token_bytes: float = 0,
) -> Sample:
    """Run one load, then wait until the server is idle. `pids` are the server's processes."""
    gateway = [pid for pid in pids if "gateway" in command_of(pid)]
    process = client.start(
        route,
        streams,
        warm=WARM_SECONDS,
        seconds=seconds,
        ramp=RAMP_SECONDS,
        options=("--bytes", str(token_bytes)),
    )
    time.sleep(WARM_SECONDS)
    start, before = time.monotonic(), [cpu_seconds(pids), cpu_seconds(gateway)]
    engine_before = cpu_seconds([engine.pid])
    time.sleep(seconds)
    after = [cpu_seconds(pids), cpu_seconds(gateway)]
    elapsed = time.monotonic() - start
    engine_cores = (cpu_seconds([engine.pid]) - engine_before) / elapsed
    load = result_of(process, seconds)
    cores, gateway_cores = ((b - a) / elapsed for a, b in zip(before, after, strict=True))
    responses = max(load.responses_per_second, 1e-9)
    sample = {
        "fraction": load.tokens_per_second / (streams * DEFAULT_HZ),
        "tokens_per_second": load.tokens_per_second,
        "responses_per_second": load.responses_per_second,
        "cores": cores,
        "cpu_us_per_response": cores / responses * 1e6,
        "gateway_us_per_event": gateway_cores / responses * 1e6,
        "engine_cores": engine_cores,
        "client_cores": load.client_cores,
        "errors": load.errors,
        "truncated": load.truncated,
    }
    for name in ("ttft_p50", "ttft_p99", "gap_p50", "gap_p99"):
        if (value := getattr(load, f"{name}_ms")) is not None:
            sample[f"{name}_ms"] = value
            sample[f"{name}_steps"] = value / 1e3 * DEFAULT_HZ
    wait_until_idle(pids)
    return sample


def wait_until_idle(pids: list[int]) -> None:
    """Wait for what a server still does for clients that have disconnected."""
    deadline = time.monotonic() + IDLE_SECONDS
    cores = 1.0
    while cores > IDLE_CORES and time.monotonic() < deadline:
        before = cpu_seconds(pids)
        time.sleep(1)
        cores = cpu_seconds(pids) - before


def label(route: str, streams: int, tokens: int) -> str:
    """Return the name of a load.

    >>> label("direct", 256, 300)
    'direct 256x300'
    """
    return f"{route} {streams}x{tokens}"


def results(samples: dict[str, Samples]) -> dict[str, Any]:
    """Return the summaries of all quantities, and how the limits compare with them."""
    for by_load in samples.values():
        for name, rounds in by_load.items():
            if name.startswith("gateway "):
                direct = by_load[name.replace("gateway", "direct")]
                for sample, other in zip(rounds, direct, strict=True):
                    sample["fraction_of_direct"] = sample["fraction"] / other["fraction"]
    faults = [
        f"{name}: {sample['errors']:g} errors, {sample['truncated']:g} truncated answers"
        for name, rounds in samples[NEW].items()
        for sample in rounds
        if sample["errors"] or sample["truncated"]
    ]
    rows = {
        version: {name: _summaries(rounds) for name, rounds in by_load.items()}
        for version, by_load in samples.items()
    }
    return {"limits": list(compare(samples)), "loads": rows, "faults": faults}


def compare(samples: dict[str, Samples]) -> Iterator[dict[str, Any]]:
    """Yield each limit with the values that it limits, and whether their median holds it."""
    for limit in LIMITS:
        values = [sample[limit.quantity] for sample in samples[NEW][limit.load]]
        if limit.relative_to is not None:
            if OLD not in samples:
                continue
            others = [sample[limit.quantity] for sample in samples[OLD][limit.relative_to]]
            values = [value / other for value, other in zip(values, others, strict=True)]
        holds = operator.ge if limit.at_least else operator.le
        before = [sample[limit.quantity] for sample in samples.get(OLD, {}).get(limit.load, [])]
        yield {
            "load": limit.load,
            "quantity": limit.quantity,
            "relative_to": limit.relative_to,
            "at_least": limit.at_least,
            "limit": limit.bound,
            "value": summary(values),
            "old": None if limit.relative_to or not before else summary(before),
            "held": holds(statistics.median(values), limit.bound),
        }


def _summaries(rounds: list[Sample]) -> dict[str, dict[str, float]]:
    """Return the summary of each quantity over the rounds that have it."""
    names = dict.fromkeys(name for sample in rounds for name in sample)
    return {name: summary([sample[name] for sample in rounds if name in sample]) for name in names}
