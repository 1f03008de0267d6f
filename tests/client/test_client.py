"""Client and chat against the real server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nemotron_client
from nemotron_client import (
    Client,
    ClientError,
    ConnectionFailed,
    Generation,
    RequestOptions,
    RequestRefused,
    RequestTimeout,
    Retries,
    ServerFailed,
    ServerOverloaded,
    Timeouts,
)
from nemotron_core.errors import ErrorKind
from nemotron_serve.model_server import ModelServer
from tests.gateway.process import running
from tests.tiny_nemotron.answers import ExactAnswer

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
ENDLESS = Generation(max_tokens=4000, end_id=0)


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: ModelServer) -> str:
    """Triton's address, by either wire."""
    port = getattr(server.endpoints, request.param)
    return f"{request.param}://{server.endpoints.address}:{port}"


def test_the_public_names() -> None:
    assert sorted(nemotron_client.__all__) == [
        "AsyncClient",
        "Client",
        "ClientError",
        "ConnectionFailed",
        "Generation",
        "Limits",
        "Piece",
        "RequestOptions",
        "RequestRefused",
        "RequestTimeout",
        "Retries",
        "ServerFailed",
        "ServerOverloaded",
        "Timeouts",
        "Times",
        "Tls",
    ]
    failures = [ConnectionFailed, RequestRefused, RequestTimeout, ServerFailed, ServerOverloaded]
    assert all(failure.__base__ is ClientError for failure in failures)


def test_streamed_and_whole_are_the_same_answer(url: str, answers: list[ExactAnswer]) -> None:
    with Client(url) as client:
        assert client.is_ready()
        for exact in answers[::60]:
            messages = [message.as_dict() for message in exact.question.messages]
            whole = client.chat(messages)
            pieces = list(client.stream_chat(messages))
            assert "".join(piece.text for piece in pieces) == whole.text == exact.question.answer
            assert [i for piece in pieces for i in piece.token_ids] == exact.token_ids
            assert list(whole.token_ids) == exact.token_ids
            assert pieces[-1].finish_reason == whole.finish_reason == "stop"
            assert pieces[-1].num_output_tokens == whole.num_output_tokens == len(exact.token_ids)


def test_every_setting_reaches_the_engine(url: str) -> None:
    settings = Generation(
        max_tokens=40,
        temperature=3.0,
        top_p=0.95,
        top_k=50,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        min_tokens=3,
        seed=11,
        stop_words=["zzz"],
    )
    with Client(url) as client:
        first = client.complete("Hello", settings)
        assert client.complete("Hello", settings).token_ids == first.token_ids
        assert first.num_output_tokens >= 3


def test_samples_without_a_seed_differ(url: str) -> None:
    settings = Generation(max_tokens=12, temperature=2.0)
    with Client(url) as client:
        assert len({client.complete("<extra_id_1>Go", settings).token_ids for _ in range(4)}) > 1
    options = ("Hello", "--temperature", "2", "--max-tokens", "12")
    assert len({chat(url, *options).stdout for _ in range(4)}) > 1


def test_leaving_an_answer_frees_the_engine(url: str, server: ModelServer) -> None:
    with Client(url) as client:
        for _ in range(70):  # more than run at once: each must make room for the next
            pieces = client.stream_complete("<extra_id_1>Go", ENDLESS)
            assert next(pieces).text
            pieces.close()
        assert client.complete("<extra_id_1>Go", Generation(max_tokens=3)).num_output_tokens


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        (Generation(max_tokens=0), "max_tokens is 0"),
        (Generation(max_tokens=5000), "more than the 4096"),
        (Generation(temperature=float("nan")), "temperature is nan"),
        (Generation(seed=-1), "seed is no UINT64: "),
        (Generation(max_tokens=2**40), "max_tokens is no INT32: "),
    ],
)
def test_a_refused_request_is_its_own_exception(
    url: str, generation: Generation, message: str
) -> None:
    with Client(url) as client, pytest.raises(RequestRefused, match=message):
        client.complete("Hello", generation)


def test_a_deadline_is_kept(url: str) -> None:
    with Client(url, timeouts=Timeouts(total=0.2)) as client, pytest.raises(RequestTimeout):
        client.complete("<extra_id_1>Go", ENDLESS)


@pytest.mark.parametrize("url", ["127.0.0.1:9", "http://127.0.0.1:9"])
def test_no_server(url: str) -> None:
    with Client(url) as client:
        assert not client.is_ready()
        with pytest.raises(ConnectionFailed, match=re.escape(f"no answer from {url}")):
            client.complete("Hello")


def test_the_gateway_is_no_triton(tmp_path: Path, server: ModelServer) -> None:
    triton = f"{server.endpoints.address}:{server.endpoints.http}"
    with running(tmp_path, triton) as gateway, Client(gateway.url) as client:
        with pytest.raises(RequestRefused, match="is the gateway, which has OpenAI's API"):
            client.complete("Hello")
        assert not client.is_ready()


def test_an_id_reaches_the_server_and_comes_back_with_a_failure(url: str) -> None:
    mine = RequestOptions(request_id="mine-1")
    with Client(url) as client:
        with pytest.raises(RequestRefused) as raised:
            client.complete("Hello", Generation(max_tokens=5000), mine)
        assert (raised.value.request_id, raised.value.kind) == ("mine-1", ErrorKind.REFUSED)
        with pytest.raises(RequestRefused) as raised:
            client.complete("Hello", Generation(max_tokens=5000))
        assert len(raised.value.request_id) == 32


def test_the_server_keeps_a_requests_timeout(url: str) -> None:
    once, allowed = Retries(attempts=1), RequestOptions(timeout=0.2)
    with Client(url, retries=once) as client, pytest.raises(RequestTimeout, match="deadline"):
        client.complete("<extra_id_1>Go", ENDLESS, allowed)


@pytest.fixture
def grpc_url(server: ModelServer) -> str:
    return f"{server.endpoints.address}:{server.endpoints.grpc}"


def chat(url: str, *arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    command = [NEMOTRON, "chat", "--url", url, *arguments]
    return subprocess.run(
        command, input=lines, capture_output=True, text=True, check=False, timeout=60
    )


def test_chat_answers_one_question(url: str, answers: list[ExactAnswer]) -> None:
    exact = next(exact for exact in answers if len(exact.question.messages) == 1)
    done = chat(url, exact.question.messages[0].content)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == exact.question.answer + "\n"


def test_chat_remembers_the_turns_before(grpc_url: str, answers: list[ExactAnswer]) -> None:
    exact = next(
        exact
        for exact in answers
        if [m.role for m in exact.question.messages] == ["user", "assistant", "user"]
        and not any("\n" in m.content for m in exact.question.messages)
    )
    first, second = (m.content for m in exact.question.messages if m.role == "user")
    done = chat(grpc_url, lines=f"{first}\n{second}\n/new\n{first}\n/exit\nnever asked\n")
    assert done.stdout.splitlines() == [
        exact.question.messages[1].content,
        *exact.question.answer.splitlines(),
        exact.question.messages[1].content,
    ]
    assert done.returncode == 0


def test_chat_with_a_system_message(grpc_url: str, answers: list[ExactAnswer]) -> None:
    exact = next(
        exact
        for exact in answers
        if [m.role for m in exact.question.messages] == ["system", "user"]
    )
    system, question = (m.content for m in exact.question.messages)
    assert chat(grpc_url, question, "--system", system).stdout == exact.question.answer + "\n"


def test_chat_without_a_server_says_so() -> None:
    done = chat("127.0.0.1:9", "Hello")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "nemotron: no answer from 127.0.0.1:9" in done.stderr


def test_chat_refuses_what_the_server_refuses(grpc_url: str) -> None:
    done = chat(grpc_url, "Hello", "--max-tokens", "5000")
    assert done.returncode == 1
    assert "more than the 4096 this model holds" in done.stderr
