"""The async client gives the same results as the blocking one."""

from __future__ import annotations

import asyncio
import inspect
import math
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest

from nemotron_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    Generation,
    RequestRefused,
    RequestTimeout,
    Timeouts,
    Tls,
)
from nemotron_core.metrics import RUNNING_METRIC
from nemotron_core.text import Tokenizer
from nemotron_serve.model_server import ModelServer
from tests.client.clients import (
    ENDLESS,
    GO,
    ONCE,
    complete_with_each,
    fail_with_each,
    make_certificate,
)
from tests.client.scripted import Scripted, Serving
from tests.serve.wire import metric
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import WAIT, until


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: ModelServer) -> str:
    """Triton's address, by either wire."""
    port = getattr(server.endpoints, request.param)
    return f"{request.param}://{server.endpoints.address}:{port}"


def test_both_have_the_same_interface() -> None:
    def public(client: type) -> dict[str, list[str]]:
        return {
            name: [f"{p.name}: {p.annotation} = {p.default}" for p in parameters]
            for name, function in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
            for parameters in [inspect.signature(function).parameters.values()]
        }

    blocking, asynchronous = public(Client), public(AsyncClient)
    asynchronous["close"] = asynchronous.pop("aclose")
    assert asynchronous == blocking
    assert {"chat", "complete", "stream_chat", "stream_complete", "generate"} < set(blocking)


def test_the_same_answers(url: str, answers: list[ExactAnswer]) -> None:
    async def ask(exact: ExactAnswer) -> None:
        messages = [message.as_dict() for message in exact.question.messages]
        whole = await client.chat(messages)
        pieces = [piece async for piece in client.stream_chat(messages)]
        assert "".join(piece.text for piece in pieces) == whole.text == exact.question.answer
        assert [i for piece in pieces for i in piece.token_ids] == exact.token_ids
        assert list(whole.token_ids) == exact.token_ids
        assert whole.finish_reason == pieces[-1].finish_reason == "stop"

    async def ask_all() -> None:
        nonlocal client
        async with AsyncClient(url) as client:
            assert await client.is_ready()
            await asyncio.gather(*(ask(exact) for exact in answers[::20]))

    client: AsyncClient
    asyncio.run(ask_all())


def test_a_prompt_as_tokens(url: str, tokenizer: Tokenizer) -> None:
    text = "<extra_id_0>System\n\n<extra_id_1>User\nWho are you?\n<extra_id_1>Assistant\n"
    generation = Generation(max_tokens=30)
    piece = complete_with_each(url, text, generation)
    assert complete_with_each(url, tokenizer.encode(text), generation) == piece
    invalid_prompt = [5, 10**6]
    with Client(url) as client, pytest.raises(RequestRefused, match="1000000 is outside"):
        client.complete(invalid_prompt, generation)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_what_can_be_asked_for_beside_the_text(url: str, model: str) -> None:
    generation = Generation(max_tokens=12, return_log_probs=True)
    piece = complete_with_each(url, GO, generation, model=model)
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
    fail_with_each(url, RequestRefused, "guided_decoding_guide", Generation(max_tokens=5, **guide))
    fail_with_each(url, RequestRefused, "bad_words", Generation(max_tokens=5, bad_words=["no"]))


def test_leaving_an_answer_frees_the_engine(url: str, server: ModelServer) -> None:
    async def leave() -> None:
        async with AsyncClient(url) as client:
            for _ in range(70):  # more than run at once: each must make room for the next
                async with aclosing(client.stream_complete(GO, ENDLESS)) as pieces:
                    async for piece in pieces:
                        assert piece.text
                        break

    asyncio.run(leave())
    until(lambda: metric(server, RUNNING_METRIC) == 0)


def test_a_cancelled_task_frees_the_engine(url: str, server: ModelServer) -> None:
    async def cancel() -> None:
        async with AsyncClient(url) as client:
            tasks = [asyncio.create_task(client.complete(GO, ENDLESS)) for _ in range(5)]
            while metric(server, RUNNING_METRIC) < 5:
                await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)

    asyncio.run(asyncio.wait_for(cancel(), WAIT))
    until(lambda: metric(server, RUNNING_METRIC) == 0)


def test_closing_the_client_ends_its_requests(url: str, server: ModelServer) -> None:
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
    fail_with_each(url, RequestTimeout, ".", timeouts=Timeouts(total=0.2))


def test_tls_and_a_key(tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    standin = Scripted(["yes"])
    with Serving(standin, credentials) as url:
        piece = complete_with_each(url, "Hello", tls=Tls(ca=certificate), api_key="secret")
        assert piece.text == "yes"
        keys = [metadata["authorization"] for metadata in standin.metadata]
        assert keys == ["Bearer secret"] * 2
        fail_with_each(url, ConnectionFailed, "no answer", tls=Tls(), retries=ONCE)
        fail_with_each(url, ConnectionFailed, "no answer", retries=ONCE)
