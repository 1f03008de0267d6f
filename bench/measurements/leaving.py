"""The time from a client's leaving to the end of its request in the engine, by way of leaving."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bench.measurements.load_client import (
    LoadClient,
    Route,
    openai_sse,
    triton_grpc,
    triton_sse,
)
from bench.measurements.servers import Server
from nemotron_engine.probe import Probe

MODEL = "nemotron-4-340b-instruct"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
TOKENS = 3000
"""Length of the answers, so that none ends by itself."""
LEAVE_SECONDS = 0.3
"""The client leaves at a random time up to this after the first piece."""
WAIT_SECONDS = 30
POLL_SECONDS = 0.003
CONFIRM_SECONDS = 0.03
"""Time for which the request must be gone: others end and begin beside it."""
RESET = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which closing a socket sends a reset."""
QUEUED_STREAMS = 4
"""Streams in the engine's queue before a request that is left while it waits."""
Leave = Callable[[], None]
Start = Callable[[], Leave]


def measure_leaving(
    server: Server, engine: Path, client: LoadClient, tries: int, background: int
) -> dict[str, dict[str, Any]]:
    """Return the quantiles of the seconds by route and way of leaving.

    `background` other streams of the direct model run meanwhile; for the requests that are left
    while they wait, as many as fill the engine and the head of its queue. Each way is tried `tries`
    times.
    """
    generator = random.Random(19)
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    with Probe(engine, WAIT_SECONDS) as probe:
        full = probe.hello().max_batch_size + QUEUED_STREAMS
        for streams, ways in (
            (background, _ways_while_it_runs(server, client, probe)),
            (full, _ways_while_it_waits(server, probe)),
        ):
            with _background(server, client, probe, streams):
                for number in range(tries):
                    for way, start in ways.items():
                        leave = start()
                        time.sleep(generator.uniform(0.02, LEAVE_SECONDS))
                        seconds[way].append(_seconds_to_free(probe, leave))
                    print(f"leaving, {streams} others: try {number + 1} of {tries}", flush=True)
    return {
        name: {
            "p50": float(np.quantile(values, 0.5)),
            "p99": float(np.quantile(values, 0.99)),
            "max": max(values),
        }
        for name, values in seconds.items()
    }


def _ways_while_it_runs(server: Server, client: LoadClient, probe: Probe) -> dict[str, Start]:
    http, grpc_port = server.http, server.grpc
    sse = {
        "direct SSE": triton_sse(http, "tensorrt_llm_bls", TOKENS),
        "ensemble SSE": triton_sse(http, "ensemble", TOKENS),
        "gateway SSE": openai_sse(server.gateway, MODEL, TOKENS),
    }
    over_grpc = {
        "direct gRPC": triton_grpc(grpc_port, "tensorrt_llm_bls", TOKENS),
        "ensemble gRPC": triton_grpc(grpc_port, "ensemble", TOKENS),
    }
    whole = openai_sse(server.gateway, MODEL, TOKENS, streamed=False)
    ways: dict[str, Start] = {}
    for name, route in sse.items():
        ways[f"{name}, close"] = partial(_stream_sse, route)
        ways[f"{name}, reset"] = partial(_stream_sse, route, resets=True)
    for name, route in over_grpc.items():
        ways[f"{name}, cancel"] = partial(_stream_grpc, route)
    for name, route in (sse | over_grpc).items():
        ways[f"{name}, SIGKILL"] = partial(_stream_in_process, client, route, probe)
    ways["gateway, not streamed, close"] = partial(_ask, whole, probe)
    ways["gateway, not streamed, reset"] = partial(_ask, whole, probe, resets=True)
    return ways


def _ways_while_it_waits(server: Server, probe: Probe) -> dict[str, Start]:
    routes = {
        "gateway SSE": openai_sse(server.gateway, MODEL, TOKENS),
        "gateway, not streamed": openai_sse(server.gateway, MODEL, TOKENS, streamed=False),
    }
    return {
        f"{name}, close while it waits": partial(_ask, route, probe)
        for name, route in routes.items()
    }


def _seconds_to_free(probe: Probe, leave: Leave) -> float:
    """Return the seconds from the leaving to the end in the engine, at most `WAIT_SECONDS`."""
    before = probe.load().running
    leave()
    start = time.monotonic()
    gone = None
    while (now := time.monotonic()) < start + WAIT_SECONDS:
        if probe.load().running >= before:
            gone = None
        elif gone is None:
            gone = now
        elif now > gone + CONFIRM_SECONDS:
            return gone - start
        time.sleep(POLL_SECONDS)
    return WAIT_SECONDS


@contextmanager
def _background(server: Server, client: LoadClient, probe: Probe, streams: int) -> Iterator[None]:
    """Keep streams of the direct model running inside the context."""
    if not streams:
        yield
        return
    route = triton_grpc(server.grpc, "tensorrt_llm_bls", TOKENS)
    process = client.start(route, streams, seconds=3600, ramp=5)
    try:
        _wait(lambda: probe.load().running >= streams)
        yield
    finally:
        process.terminate()
        process.communicate()


def _stream_sse(route: Route, *, resets: bool = False) -> Leave:
    """Ask by HTTP and return at the first piece."""
    connection = _send(route)
    received = b""
    while b"data: " not in received:
        data = connection.recv(1 << 16)
        assert data and b" 200 " in received + data, received + data
        received += data
    return _leave(connection, resets)


def _ask(route: Route, probe: Probe, *, resets: bool = False) -> Leave:
    """Ask by HTTP and return when the engine has the request."""
    before = probe.load().running
    connection = _send(route)
    _wait(lambda: probe.load().running > before)
    return _leave(connection, resets)


def _send(route: Route) -> socket.socket:
    assert isinstance(route.target, int)
    connection = socket.create_connection(("127.0.0.1", route.target), WAIT_SECONDS)
    connection.sendall(route.request)
    return connection


def _leave(connection: socket.socket, resets: bool) -> Leave:
    if resets:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return connection.close


def _stream_grpc(route: Route) -> Leave:
    """Ask by gRPC and return at the first piece. Leaving cancels, and keeps the connection."""
    channel = grpc.insecure_channel(f"127.0.0.1:{route.target}")
    call = channel.stream_stream(STREAM_INFER)(iter([route.request]), timeout=10 * WAIT_SECONDS)
    next(call)

    def leave() -> None:
        call.cancel()
        with contextlib.suppress(grpc.RpcError):
            next(call)

    return leave


def _stream_in_process(client: LoadClient, route: Route, probe: Probe) -> Leave:
    """Ask from a process of its own and return when the engine has its request."""
    before = probe.load().running
    process = client.start(route, 1, seconds=10 * WAIT_SECONDS)
    _wait(lambda: probe.load().running > before)

    def leave() -> None:
        process.kill()
        process.communicate()

    return leave


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the engine did not get a request in time")
        time.sleep(POLL_SECONDS)
