"""The load client counts right, against servers of others: asyncio's, grpcio's, the engine's."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.measurements.load_client import (
    Load,
    LoadClient,
    Route,
    WatchedLoad,
    engine_socket,
    openai_sse,
    result_of,
    triton_grpc,
    triton_sse,
)
from bench.measurements.synthetic_engine import HZ_VARIABLE
from nemotron_engine.probe import Probe
from tests.bench.test_synthetic_engine import write_settings
from tests.waiting import until, until_written

TOKENS = 12
PIECES = 4
SECONDS = 1.0


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> LoadClient:
    return LoadClient(tmp_path_factory.mktemp("load"))


def run(client: LoadClient, route: Route, streams: int = 4, *options: str) -> Load:
    return result_of(client.start(route, streams, seconds=SECONDS, options=options), SECONDS)


class HttpServer(asyncio.Protocol):
    """One connection: answers each request with `answer`, and counts how the connection ends."""

    def __init__(
        self, answer: bytes, ends: Counter[str], *, pause: float = 0, closes: bool = False
    ) -> None:
        self.answer, self.ends, self.pause, self.closes = answer, ends, pause, closes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        assert data.startswith(b"POST /"), data
        self.task = asyncio.ensure_future(self.respond())

    async def respond(self) -> None:
        half = len(self.answer) // 2  # in the middle of whatever stands there
        self.transport.write(self.answer[:half])
        await asyncio.sleep(self.pause)
        self.transport.write(self.answer[half:])
        if self.closes:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.ends[type(error).__name__] += 1


@contextmanager
def http_server(answer: bytes, **options: Any) -> Iterator[tuple[int, Counter[str]]]:
    """Serve in a thread. Yields the port, and the counts of the ends of connections."""
    ends: Counter[str] = Counter()
    started: queue.SimpleQueue[int] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = await loop.create_server(
            lambda: HttpServer(answer, ends, **options), "127.0.0.1", 0
        )
        async with server:
            started.put(server.sockets[0].getsockname()[1])
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield started.get(), ends
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def chunked(events: list[str], head: str = "HTTP/1.1 200 OK") -> bytes:
    """Return a response whose chunks end anywhere, also within events."""
    body = "".join(f"data: {event}\n\n" for event in events).encode()
    parts = [body[start : start + 17] for start in range(0, len(body), 17)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return f"{head}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"


def triton_events(pieces: int = PIECES) -> list[str]:
    counts = [TOKENS * (number + 1) // PIECES for number in range(pieces)]
    return [
        json.dumps({"num_output_tokens": count, "text_output": 'a "word" \n'}) for count in counts
    ]


def openai_events() -> list[str]:
    pieces = [json.dumps({"choices": [{"text": " word"}], "usage": None})] * PIECES
    usage = {"completion_tokens": TOKENS, "prompt_tokens": 3}
    return [*pieces, json.dumps({"choices": [], "usage": usage}), "[DONE]"]


@pytest.mark.parametrize(
    ("make", "events"),
    [
        (lambda port: triton_sse(port, "m", TOKENS), triton_events()),
        (lambda port: openai_sse(port, "m", TOKENS), openai_events()),
    ],
)
def test_answers_over_sse(
    client: LoadClient, make: Callable[[int], Route], events: list[str]
) -> None:
    with http_server(chunked(events), pause=0.05) as (port, ends):
        load = run(client, make(port))
    assert load.errors == load.truncated == load.left == 0, load
    assert load.finished > 4
    assert load.tokens_per_second / load.responses_per_second == pytest.approx(
        TOKENS / PIECES, rel=0.2
    )
    assert load.ttft_p50_ms is not None and load.ttft_p50_ms < 1000
    assert load.gap_p99_ms is not None and load.gap_p99_ms > 40
    assert ends.total() <= 4  # connections are kept alive


def test_a_known_size_tells_the_tokens_of_answers_that_do_not_end(client: LoadClient) -> None:
    answer = chunked(openai_events()[:1] * 1000)[:-100]
    with http_server(answer) as (port, _):
        load = run(client, openai_sse(port, "m", TOKENS), 4, "--bytes", "2.5")
    assert load.finished == 0 < load.responses_per_second
    assert load.tokens_per_second == pytest.approx(load.responses_per_second * 2, rel=0.01)


WHOLE = triton_events()[-1].encode()


@pytest.mark.parametrize(
    "framed",
    [
        b"Content-Length: %d\r\n\r\n%s" % (len(WHOLE), WHOLE),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(WHOLE), WHOLE),
    ],
)
def test_an_answer_as_a_whole(client: LoadClient, framed: bytes) -> None:
    with http_server(b"HTTP/1.1 200 OK\r\n" + framed) as (port, _):
        load = run(client, triton_sse(port, "m", TOKENS, streamed=False))
    assert load.finished > 4 and load.errors == load.truncated == 0, load


def test_answers_that_end_early_and_errors_are_counted(client: LoadClient) -> None:
    with http_server(chunked(triton_events(2))) as (port, _):
        load = run(client, triton_sse(port, "m", TOKENS))
    assert load.finished == load.truncated > 0
    with http_server(chunked([*triton_events(2), '{"error": "overloaded"}'])) as (port, _):
        load = run(client, triton_sse(port, "m", TOKENS))
    assert load.errors > 0 == load.finished and "overloaded" in load.last_error
    refusal = b"HTTP/1.1 503 Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
    with http_server(refusal) as (port, _):
        load = run(client, triton_sse(port, "m", TOKENS))
    assert load.errors > 0 == load.finished and load.last_error == "busy"
    with http_server(chunked(triton_events())[:-5], closes=True) as (port, _):
        load = run(client, triton_sse(port, "m", TOKENS))
    assert load.errors > 0 == load.finished and load.last_error == "connection closed"
    load = run(client, triton_sse(1, "m", TOKENS))  # nothing listens there
    assert load.errors > 0 == load.finished


def test_a_silent_server_is_an_error(client: LoadClient) -> None:
    with http_server(b"", pause=60) as (port, _):
        load = run(client, triton_sse(port, "m", TOKENS), 2, "--silence", "0.3")
    assert load.errors >= 2 and load.last_error == "no response in time"


def test_clients_leave_by_closing_and_by_resetting(client: LoadClient) -> None:
    with http_server(chunked(triton_events()), pause=0.5) as (port, ends):
        load = run(client, triton_sse(port, "m", TOKENS), 20, "--leave", "1")
        until(lambda: ends.total() >= load.left)
    assert load.finished == load.errors == 0 < load.left
    assert min(ends["ConnectionResetError"], ends["NoneType"]) > load.left / 5


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers as Triton does, and counts the requests that are cancelled."""

    def __init__(self, *, pause: float = 0, error: str = "") -> None:
        self.pause, self.error = pause, error
        self.cancelled = 0

    def ModelStreamInfer(  # noqa: N802  # the method's name in the protocol
        self, requests: Iterator[service_pb2.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[service_pb2.ModelStreamInferResponse]:
        for request in requests:
            assert request.model_name == "m"
            for piece in range(PIECES):
                response = service_pb2.ModelInferResponse(model_name="m", id="x" * 500)
                count = TOKENS * (piece + 1) // PIECES
                for name, datatype, content in (
                    ("text_output", "BYTES", b"\4\0\0\0word"),
                    ("num_output_tokens", "INT32", count.to_bytes(4, "little")),
                ):
                    response.outputs.add(name=name, datatype=datatype, shape=[1])
                    response.raw_output_contents.append(content)
                yield service_pb2.ModelStreamInferResponse(infer_response=response)
                time.sleep(self.pause)
                if not context.is_active():
                    self.cancelled += 1
                    return
            if self.error:
                yield service_pb2.ModelStreamInferResponse(error_message=self.error)


@contextmanager
def triton(servicer: Triton) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(32))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def test_answers_over_grpc(client: LoadClient) -> None:
    with triton(Triton()) as port:
        load = run(client, triton_grpc(port, "m", TOKENS), 20)  # some on one connection
    assert load.errors == load.truncated == 0 and load.finished > 20, load
    assert load.tokens_per_second / load.responses_per_second == pytest.approx(
        TOKENS / PIECES, rel=0.2
    )


def test_errors_and_cancels_over_grpc(client: LoadClient) -> None:
    with triton(Triton(error="no room")) as port:
        load = run(client, triton_grpc(port, "m", TOKENS))
    assert load.errors > 0 == load.finished and load.last_error == "no room"
    servicer = Triton(pause=0.4)
    with triton(servicer) as port:
        load = run(client, triton_grpc(port, "m", TOKENS), 8, "--leave", "1")
        until(lambda: servicer.cancelled >= load.left)
    assert load.finished == load.errors == 0 < load.left


@contextmanager
def engine(folder: Path, hz: int) -> Iterator[Path]:
    """Run the synthetic engine. Yields its socket."""
    write_settings(folder)
    (folder / "tokenizer.model").write_bytes(b"")
    folder.chmod(0o700)
    path = folder / "engine"
    command = [sys.executable, "-m", "nemotron_engine", "--socket", str(path), str(folder)]
    command += ["--lane", "bench.measurements.synthetic_engine:SyntheticAdapter"]
    environment = os.environ | {HZ_VARIABLE: str(hz)}
    with subprocess.Popen(command, env=environment) as process:
        try:
            until_written(path, process)
            yield path
        finally:
            process.terminate()


def test_the_engine_itself(client: LoadClient, tmp_path: Path) -> None:
    with engine(tmp_path, 100) as path, Probe(path, 10) as probe:
        load = run(client, engine_socket(path, TOKENS), 4)
        assert load.errors == load.truncated == 0 and load.finished > 4, load
        assert 40 < load.tokens_per_second <= 230  # two of the streams run, 100 tokens/s each
        until(lambda: probe.load().running == 0)
        load = run(client, engine_socket(path, TOKENS), 7)
        assert "run or wait already" in load.last_error
        watched = WatchedLoad(
            client.start(
                engine_socket(path, 10_000),
                2,
                seconds=60,
                options=("--leave", "1", "--progress"),
            )
        )
        until(lambda: watched.silence_seconds > 1)
        left = watched.end()
        assert left.finished == left.errors == 0 < left.left
        until(lambda: probe.load().running == 0)
