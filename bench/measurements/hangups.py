"""Clients that hang up, are reset, cancelled and killed, against every text model and the gateway.

On each route 40 % of the requests are left within 0.3 s, half of those over SSE by a TCP reset,
those over gRPC by a cancel. Client processes with open streams are killed every few seconds. Then a
soak: streams on all routes at once, while the engine's process is killed or stopped about once a
minute. At the end of each part the server must answer, no request may remain in the engine, and
memory must be flat. Last comes the time until the engine is free of a request whose client left.

Exit code: 1 for a fault, 2 if the server did not answer before the load.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from bench.measurements.disturbances import Disturbances
from bench.measurements.leaving import measure_leaving
from bench.measurements.load_client import (
    LoadClient,
    Route,
    WatchedLoad,
    openai_sse,
    triton_grpc,
    triton_sse,
)
from bench.measurements.processes import family, rss_by_name
from bench.measurements.servers import Server, engine_of, serving, synthetic_engine
from bench.measurements.synthetic_engine import DEFAULT_HZ
from nemotron_engine.probe import Probe

MODEL = "nemotron-4-340b-instruct"
TEXT_MODELS = ("ensemble", "tensorrt_llm_bls", "generate")
TOKENS = 60
LEAVING = ("--leave", "0.4")
VICTIM_STREAMS, VICTIM_SECONDS = 4, 4
"""Streams of a client process that is killed, and its time."""
SILENCE_SECONDS = 25
"""Time without a whole answer on a route after which the server counts as hung."""
IDLE_SECONDS, UNHEARD_IDLE_SECONDS = 2, 60
"""Time in which the engine must have ended all requests after the clients left. Triton never hears
of a client that leaves an unstreamed HTTP request, so those answers run to their ends."""
ANSWER_SECONDS = 15
GROWTH, GROWTH_BYTES = 1.05, 10_000_000
"""A process's memory is flat if it grows by no more than this in the second half."""
ENGINE_NAME = "nemotron_engine"
"""Name of the process whose memory begins anew after each disturbance."""
OTHER_SECONDS = 600
"""Time for starts and ends besides the loads, after which the whole run is given up."""
Loads = Sequence[tuple[Route, int]]
"""Routes with their numbers of streams."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine folder of the CPU lane")
    parser.add_argument("--seconds", type=float, default=180, help="of each route, default 180")
    parser.add_argument("--soak", type=float, default=600, help="seconds, default 600")
    parser.add_argument("--streams", type=int, default=200, help="of the soak, default 200")
    parser.add_argument("--tries", type=int, default=20, help="of each way to leave, default 20")
    parser.add_argument("--background", type=int, default=8, help="streams meanwhile, default 8")
    parser.add_argument("--synthetic", action="store_true", help="a paced engine, without kills")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    signal.signal(signal.SIGALRM, _give_up)
    limit = 4 * options.seconds + options.soak + 10 * options.tries + OTHER_SECONDS
    signal.alarm(int(limit))
    client = LoadClient(options.work)
    parts: dict[str, dict[str, Any]] = {}
    results: dict[str, Any] = {"parts": parts}
    with _serving(options) as (server, engine):
        if silent := list(_unanswered(server)):
            print(f"no answer before the load: {', '.join(silent)}", file=sys.stderr)
            sys.exit(2)
        if options.seconds:
            for name, loads in single_routes(server).items():
                parts[name] = run_part(name, server, engine, client, loads, options.seconds)
        if options.soak:
            loads = soak_routes(server, options.streams)
            kills = Disturbances(server) if engine is None else None
            parts["soak"] = run_part("soak", server, engine, client, loads, options.soak, kills)
        if options.tries:
            socket = engine or engine_of(server).socket
            results["seconds_to_free"] = measure_leaving(
                server, socket, client, options.tries, options.background
            )
    signal.alarm(0)
    faults = [f"{name}: {fault}" for name, part in parts.items() for fault in part["faults"]]
    return results | {"faults": faults}


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit("the measurement took longer than planned: something hangs")


@contextmanager
def _serving(options: argparse.Namespace) -> Iterator[tuple[Server, Path | None]]:
    """Serve, with the synthetic engine's socket or `None`."""
    with ExitStack() as stack:
        socket, arguments = None, []
        if options.synthetic:
            socket = stack.enter_context(synthetic_engine(options.engine, DEFAULT_HZ)).socket
            arguments = ["--engine-socket", str(socket)]
        yield stack.enter_context(serving(options.engine, *arguments)), socket


def single_routes(server: Server) -> Mapping[str, Loads]:
    """Return the loads by the name of what they are sent to."""
    loads: dict[str, Loads] = {
        model: [
            (triton_sse(server.http, model, TOKENS, streamed=model != "generate"), 40),
            (triton_grpc(server.grpc, model, TOKENS), 8),
        ]
        for model in TEXT_MODELS
    }
    return loads | {"gateway": [(openai_sse(server.gateway, MODEL, TOKENS), 48)]}


def soak_routes(server: Server, streams: int) -> Loads:
    """Return the loads of the routes that hear of their clients, with about equal streams each."""
    routes = [
        route
        for loads in single_routes(server).values()
        for route, streams in loads
        if not is_unheard([(route, streams)])
    ]
    return [
        (route, streams // len(routes) + (index < streams % len(routes)))
        for index, route in enumerate(routes)
    ]


def run_part(
    name: str,
    server: Server,
    engine: Path | None,
    client: LoadClient,
    loads: Loads,
    seconds: float,
    disturbances: Disturbances | None = None,
) -> dict[str, Any]:
    """Run loads for `seconds`, and look at the server meanwhile. Returns outcomes and faults.

    `engine` is the socket of an engine that the server has not started.
    """
    rss = [rss_by_name(family([server.pid]))]
    faults: list[str] = []
    end = time.monotonic() + seconds
    longest_silence = SILENCE_SECONDS
    if disturbances is not None:
        longest_silence += disturbances.seconds_without_engine
        disturbances.start(end)
    watched = [
        WatchedLoad(client.start(route, streams, seconds=seconds, options=(*LEAVING, "--progress")))
        for route, streams in loads
    ]
    kills = 0
    while time.monotonic() < end and not faults:
        kills += _run_victims(client, loads)
        rss.append(rss_by_name(family([server.pid])))
        silence = max(load.silence_seconds for load in watched)
        if silence > longest_silence:
            faults.append(f"no whole answer in {silence:.0f} s")
    outcomes: Counter[str] = Counter()
    last_errors = []
    for load in watched:
        outcome = load.end()
        outcomes.update(
            finished=outcome.finished,
            left=outcome.left,
            errors=outcome.errors,
            truncated=outcome.truncated,
        )
        last_errors += [outcome.last_error] if outcome.last_error else []
    if disturbances is not None:
        faults += disturbances.end()
    elif outcomes["errors"]:
        faults.append(f"{outcomes['errors']} errors")
    if outcomes["truncated"]:
        faults.append(f"{outcomes['truncated']} answers without an error are not whole")
    idle_seconds = UNHEARD_IDLE_SECONDS if is_unheard(loads) else IDLE_SECONDS
    if remaining := _remaining(server, engine, idle_seconds):
        faults.append(f"{remaining} requests in the engine {idle_seconds} s after the load")
    faults += [f"{route} does not answer after the load" for route in _unanswered(server)]
    half_way, last = rss[len(rss) // 2], rss[-1]
    if growth := {
        name: size / 1e6
        for name, size in last.items()
        if size > half_way.get(name, size) * GROWTH + GROWTH_BYTES
        and not (disturbances and name == ENGINE_NAME)
    }:
        faults.append(f"memory in MB grew in the second half: {growth}")
    result = {
        "outcomes": dict(outcomes) | {"killed client processes": kills},
        "last_errors": sorted(set(last_errors)),
        "disturbances": disturbances.events if disturbances else [],
        "rss_bytes": {"start": rss[0], "half way": half_way, "end": last},
        "faults": faults,
    }
    print(f"{name}: {json.dumps(result)}", flush=True)
    return result


def _run_victims(client: LoadClient, loads: Loads) -> int:
    """Kill client processes with open streams after some seconds. Returns their number."""
    victims = [client.start(route, VICTIM_STREAMS, seconds=3600) for route, _ in loads]
    time.sleep(VICTIM_SECONDS)
    for victim in victims:
        victim.kill()
        victim.communicate()
    return len(victims)


def is_unheard(loads: Loads) -> bool:
    """Return whether Triton does not hear of some of the clients that leave."""
    return any(b"/generate HTTP" in route.request for route, _ in loads)


def _remaining(server: Server, engine: Path | None, seconds: float) -> int:
    """Return the number of requests in the engine once it is 0, or `seconds` from now."""
    deadline = time.monotonic() + seconds
    with Probe(engine or engine_of(server).socket, ANSWER_SECONDS) as probe:
        while (running := probe.load().running) and time.monotonic() < deadline:
            time.sleep(0.05)
    return running


def _unanswered(server: Server) -> Iterator[str]:
    """Yield the names of the text models, and of the gateway, that do not answer a request."""
    body: dict[str, object] = {"max_tokens": 5}
    requests = {
        model: (server.http, f"/v2/models/{model}/generate", body | {"text_input": "hello"})
        for model in TEXT_MODELS
    }
    gateway_body = body | {"prompt": "hello", "model": MODEL}
    requests["gateway"] = (server.gateway, "/v1/completions", gateway_body)
    for name, (port, path, content) in requests.items():
        connection = http.client.HTTPConnection(server.address, port, timeout=ANSWER_SECONDS)
        try:
            connection.request(
                "POST", path, json.dumps(content), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            response.read()
            if response.status != http.HTTPStatus.OK:
                yield name
        except (OSError, http.client.HTTPException):
            yield name
        finally:
            connection.close()
