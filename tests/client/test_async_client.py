"""The async client gives what the waiting one gives; timeouts, limits and retries of both."""

from __future__ import annotations

import asyncio
import inspect
import math
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nemotron_build.server import TritonServer
from nemotron_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    Generation,
    Limits,
    Piece,
    RequestRefused,
    RequestTimeout,
    Retries,
    ServerFailed,
    ServerOverloaded,
    Timeouts,
    Tls,
)
from nemotron_engine.metrics import RUNNING_METRIC
from nemotron_text import Tokenizer
from tests.serve.wire import metric
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tools import debian_program
from tests.waiting import until

ENDLESS = Generation(max_tokens=4000, end_id=0)
SHORT = Generation(max_tokens=20)
GO = "<extra_id_1>Go"
WAIT = 60
ONCE = Retries(attempts=1)


@pytest.fixture
def url(server: TritonServer) -> str:
    return f"{server.endpoints.address}:{server.endpoints.grpc}"


def both(url: str, prompt: Any, generation: Generation = SHORT, **options: Any) -> Piece:
    """The answer of both clients, which must be the same."""

    async def ask() -> Piece:
        async with AsyncClient(url, **options) as client:
            (piece,) = [piece async for piece in client.generate(prompt, generation)]
            return piece

    with Client(url, **options) as client:
        (piece,) = client.generate(prompt, generation)
    assert asyncio.run(ask()) == piece
    return piece


def both_fail(
    url: str, kind: type[Exception], match: str, generation: Generation = ENDLESS, **options: Any
) -> None:
    """Both clients raise it, streaming or not."""

    async def ask(stream: bool) -> None:
        async with AsyncClient(url, **options) as client:
            with pytest.raises(kind, match=match):
                async for _ in client.generate(GO, generation, stream=stream):
                    pass

    with Client(url, **options) as client:
        for stream in (False, True):
            with pytest.raises(kind, match=match):
                list(client.generate(GO, generation, stream=stream))
            asyncio.run(ask(stream))


def test_both_have_the_same_interface() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: [f"{p.name}: {p.annotation} = {p.default}" for p in parameters]
            for name, function in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
            for parameters in [inspect.signature(function).parameters.values()]
        }

    waiting, awaiting = public(Client), public(AsyncClient)
    awaiting["close"] = awaiting.pop("aclose")
    assert awaiting == waiting
    assert {"chat", "complete", "stream_chat", "stream_complete", "generate"} < set(waiting)


def test_the_same_answers(url: str, answers: list[ExactAnswer]) -> None:
    async def ask(one: ExactAnswer) -> None:
        messages = [message.as_dict() for message in one.question.messages]
        whole = await client.chat(messages)
        pieces = [piece async for piece in client.stream_chat(messages)]
        assert "".join(piece.text for piece in pieces) == whole.text == one.question.answer
        assert [i for piece in pieces for i in piece.token_ids] == one.token_ids
        assert list(whole.token_ids) == one.token_ids
        assert whole.finish_reason == pieces[-1].finish_reason == "stop"

    async def ask_all() -> None:
        nonlocal client
        async with AsyncClient(url) as client:
            assert await client.is_ready()
            await asyncio.gather(*(ask(one) for one in answers[::20]))

    client: AsyncClient
    asyncio.run(ask_all())


def test_a_prompt_as_tokens(url: str, tokenizer: Tokenizer) -> None:
    text = "<extra_id_0>System\n\n<extra_id_1>User\nWho are you?\n<extra_id_1>Assistant\n"
    generation = Generation(max_tokens=30)
    assert both(url, tokenizer.encode(text), generation) == both(url, text, generation)
    both_fail_prompt = [5, 10**6]
    with Client(url) as client, pytest.raises(RequestRefused, match="1000000 is outside"):
        client.complete(both_fail_prompt, generation)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_what_can_be_asked_for_beside_the_text(url: str, model: str) -> None:
    generation = Generation(max_tokens=12, return_log_probs=True)
    piece = both(url, GO, generation, model=model)
    assert len(piece.log_probs) == len(piece.token_ids) == piece.num_output_tokens
    assert piece.cum_log_prob == pytest.approx(math.fsum(piece.log_probs), abs=1e-3)
    assert piece.times is None
    with Client(url, model=model) as client:
        timed = client.complete(GO, Generation(max_tokens=12, return_perf_metrics=True))
    assert timed.times is not None
    assert (
        timed.times.arrival_ns
        <= timed.times.first_scheduled_ns
        <= timed.times.first_token_ns
        <= timed.times.last_token_ns
    )


def test_several_answers(url: str) -> None:
    generation = Generation(max_tokens=8, num_return_sequences=3, temperature=2.0, seed=4, end_id=0)

    async def stream() -> dict[int, str]:
        texts = dict.fromkeys(range(3), "")
        async with AsyncClient(url) as client:
            async for piece in client.generate(GO, generation, stream=True):
                texts[piece.sequence_index] += piece.text
        return texts

    with Client(url) as client:
        whole = {piece.sequence_index: piece.text for piece in client.generate(GO, generation)}
        with pytest.raises(RequestRefused, match=r"iterate over generate\(\)"):
            client.complete(GO, generation)
    assert asyncio.run(stream()) == whole
    assert len(set(whole.values())) > 1


def test_a_lane_says_what_it_cannot_do(url: str) -> None:
    guide = {"guided_decoding_guide_type": "json", "guided_decoding_guide": "{}"}
    both_fail(url, RequestRefused, "guided_decoding_guide", Generation(max_tokens=5, **guide))
    both_fail(url, RequestRefused, "bad_words", Generation(max_tokens=5, bad_words=["no"]))


def test_leaving_an_answer_frees_the_engine(url: str, server: TritonServer) -> None:
    async def leave() -> None:
        async with AsyncClient(url) as client:
            for _ in range(70):  # more than run at once: each must make room for the next
                async with aclosing(client.stream_complete(GO, ENDLESS)) as pieces:
                    async for piece in pieces:
                        assert piece.text
                        break

    asyncio.run(leave())
    until(lambda: metric(server, RUNNING_METRIC) == 0)


def test_a_cancelled_task_frees_the_engine(url: str, server: TritonServer) -> None:
    async def cancel() -> None:
        async with AsyncClient(url) as client:
            tasks = [asyncio.create_task(client.complete(GO, ENDLESS)) for _ in range(5)]
            while metric(server, RUNNING_METRIC) < 5:
                await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in done)

    asyncio.run(asyncio.wait_for(cancel(), WAIT))
    until(lambda: metric(server, RUNNING_METRIC) == 0)


def test_closing_the_client_ends_its_requests(url: str, server: TritonServer) -> None:
    async def close() -> None:
        client = AsyncClient(url)
        with pytest.raises(ConnectionFailed, match="client was closed"):
            async for _ in client.stream_complete(GO, ENDLESS):
                await client.aclose()

    asyncio.run(close())
    client = Client(url)
    with pytest.raises(ConnectionFailed, match="client was closed"):
        for _ in client.stream_complete(GO, ENDLESS):
            client.close()
    until(lambda: metric(server, RUNNING_METRIC) == 0)


def test_one_deadline_for_the_whole(url: str) -> None:
    both_fail(url, RequestTimeout, ".", timeouts=Timeouts(total=0.2))


class Scripted(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A stand-in server: answers each call by the next line of its script.

    A number is a pause in seconds, a text a piece, an exception's message an error in the stream,
    a status a failed call.
    """

    def __init__(self, *script: list[float | str | Exception | grpc.StatusCode]) -> None:
        self.script = list(script)
        self.calls = self.most = self._running = 0
        """Calls so far, and how many ran at once."""
        self._lock = threading.Lock()
        self.seen: list[dict[str, str]] = []

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        request = next(requests)
        if any(one.name == "stop" for one in request.inputs):
            return
        with self._lock:
            self.calls += 1
            self._running += 1
            self.most = max(self.most, self._running)
            steps = self.script[min(self.calls, len(self.script)) - 1]
        self.seen.append({key: str(value) for key, value in context.invocation_metadata()})
        for step in steps:
            if isinstance(step, float):
                time.sleep(step)
            elif isinstance(step, grpc.StatusCode):
                context.abort(step, "as scripted")
            elif isinstance(step, Exception):
                yield service_pb2.ModelStreamInferResponse(error_message=str(step))
            else:
                response = service_pb2.ModelInferResponse(model_name=request.model_name)
                data = step.encode()
                response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
                response.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
                yield service_pb2.ModelStreamInferResponse(infer_response=response)
        with self._lock:
            self._running -= 1


class Serving:
    """A stand-in behind a real gRPC server."""

    def __init__(
        self, standin: Scripted, credentials: grpc.ServerCredentials | None = None
    ) -> None:
        self._server = grpc.server(ThreadPoolExecutor(8))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(standin, self._server)
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.url = f"127.0.0.1:{port}"

    def __enter__(self) -> str:
        self._server.start()
        return self.url

    def __exit__(self, *_error: object) -> None:
        self._server.stop(None).wait()


FULL = RuntimeError("server overloaded: 448 requests wait already")
QUICK = Retries(attempts=3, first_delay=0.01)


def test_the_classic_ensemble_says_less() -> None:
    with Serving(Scripted(["Good ", "morning"])) as url, Client(url) as client:
        pieces = list(client.stream_complete("Hello"))
        assert pieces == [Piece("Good "), Piece("morning")]


@pytest.mark.parametrize(
    ("script", "timeouts", "message"),
    [
        ([5.0, "late"], Timeouts(first_token=0.2), "no token in 0.2 seconds"),
        (["a", 0.1, "b", 5.0, "late"], Timeouts(between_tokens=0.5), "no further token in 0.5"),
    ],
)
def test_a_timeout_for_each_wait(script: list[Any], timeouts: Timeouts, message: str) -> None:
    with Serving(Scripted(script)) as url:
        both_fail(url, RequestTimeout, message, timeouts=timeouts)


def test_the_clock_stands_while_the_caller_is_slow() -> None:
    timeouts = Timeouts(first_token=5, between_tokens=0.3)
    with Serving(Scripted(["a", "b", "c"])) as url, Client(url, timeouts=timeouts) as client:
        texts = []
        for piece in client.stream_complete("Hello"):
            texts.append(piece.text)
            time.sleep(0.5)
        assert texts == ["a", "b", "c"]


def test_no_connection_in_time() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:  # takes, and never speaks
        url = f"127.0.0.1:{mute.getsockname()[1]}"
        options = {"timeouts": Timeouts(connect=0.3), "retries": ONCE}
        both_fail(url, ConnectionFailed, f"no answer from {url}", **options)


@pytest.mark.parametrize("failure", [FULL, grpc.StatusCode.UNAVAILABLE])
def test_what_may_work_later_is_tried_again(failure: Any) -> None:
    standin = Scripted([failure], [failure], ["yes"])
    with Serving(standin) as url:
        with Client(url, retries=QUICK) as client:
            assert client.complete("Hello").text == "yes"
        assert standin.calls == 3
        standin.calls = 0

        async def ask() -> str:
            async with AsyncClient(url, retries=QUICK) as client:
                return (await client.complete("Hello")).text

        assert asyncio.run(ask()) == "yes"
        assert standin.calls == 3


@pytest.mark.parametrize(
    ("script", "kind", "calls"),
    [
        ([FULL], ServerOverloaded, 3),
        ([RuntimeError("request refused: no")], RequestRefused, 1),
        ([RuntimeError("engine failed: no")], ServerFailed, 1),
        ([RuntimeError("deadline exceeded: no")], RequestTimeout, 1),
        ([grpc.StatusCode.INTERNAL], ServerFailed, 1),
        (["half", grpc.StatusCode.UNAVAILABLE], ConnectionFailed, 1),
    ],
)
def test_what_may_not_help_is_not(script: list[Any], kind: type[Exception], calls: int) -> None:
    standin = Scripted(script)
    with Serving(standin) as url, Client(url, retries=QUICK) as client:
        with pytest.raises(kind):
            list(client.stream_complete("Hello"))
        assert standin.calls == calls


def test_the_wait_doubles_and_varies() -> None:
    retries = Retries(attempts=10, first_delay=1, longest_delay=5)
    for attempt, longest in [(1, 1), (2, 2), (3, 4), (4, 5), (9, 5)]:
        delays = [retries.delay(attempt, ServerOverloaded(), begun=False) for _ in range(50)]
        assert all(d is not None and longest / 2 <= d <= longest for d in delays)
        assert len(set(delays)) > 1
    assert retries.delay(10, ServerOverloaded(), begun=False) is None


def test_a_limit_on_requests_at_once() -> None:
    standin = Scripted([0.02, "yes"])
    limits = Limits(concurrent_requests=2)

    async def ask_all(url: str) -> None:
        async with AsyncClient(url, limits=limits) as client:
            await asyncio.gather(*(client.complete("Hello") for _ in range(8)))

    with Serving(standin) as url:
        asyncio.run(ask_all(url))
        with Client(url, limits=limits) as client, ThreadPoolExecutor(8) as pool:
            list(pool.map(client.complete, ["Hello"] * 8))
    assert standin.calls == 16
    assert standin.most == 2


def test_tls_and_a_key(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [debian_program("openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key)]
    subprocess.run([*command, "-out", str(certificate)], check=True, capture_output=True)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    standin = Scripted(["yes"])
    with Serving(standin, credentials) as url:
        assert both(url, "Hello", tls=Tls(ca=certificate), api_key="secret").text == "yes"
        assert [seen["authorization"] for seen in standin.seen] == ["Bearer secret"] * 2
        both_fail(url, ConnectionFailed, "no answer", tls=Tls(), retries=ONCE)
        both_fail(url, ConnectionFailed, "no answer", retries=ONCE)
