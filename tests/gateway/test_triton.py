"""The gateway's requests to Triton, before a server that does what its script says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest

from nemotron_core.generation import Generation, Piece, Times
from nemotron_core.openai.errors import HttpError
from nemotron_gateway import backend
from nemotron_gateway.backend import Backend
from nemotron_gateway.http_connection import MAX_BUFFERED_BYTES
from nemotron_gateway.metrics import Metrics
from nemotron_gateway.settings import GatewaySettings
from nemotron_gateway.triton import Configuration, Triton
from tests.gateway.scripted_triton import (
    CLOSE,
    HEARTBEAT,
    LAST,
    LAST_CHUNK,
    LONG,
    WORD,
    ScriptedTriton,
    Step,
    chunk,
    event,
    head,
    plain,
    stream,
)
from tests.waiting import WAIT

PIECE = Piece(" word", (7,), num_output_tokens=1)


async def pieces_of(
    triton: Triton,
    prompt: Any = "Go",
    generation: Generation = Generation(),
    seconds: float = LONG,
) -> list[Piece]:
    return [piece async for piece in triton.generate(prompt, generation, seconds)]


def ask(script: Sequence[Step], *arguments: Any, **options: Any) -> tuple[list[Piece], Any]:
    """Return the pieces of one answer, and the body that asked for it."""

    async def run() -> tuple[list[Piece], Any]:
        async with ScriptedTriton(script) as server:
            pieces = await pieces_of(Triton(server.address), *arguments, **options)
            ((path, body),) = server.requests
            assert path == "/v2/models/tensorrt_llm_bls/generate_stream"
            return pieces, body

    return asyncio.run(run())


def error_of(script: Sequence[Step], **options: Any) -> HttpError:
    with pytest.raises(HttpError) as raised:
        ask(script, **options)
    return raised.value


@pytest.mark.parametrize(
    ("prompt", "generation", "inputs"),
    [
        ("Hé", {"max_tokens": 3}, {"text_input": "Hé", "max_tokens": 3}),
        ([5, 7], {"stop_words": ["a", "b"]},
         {"input_token_ids": [5, 7], "stop_words": ["a", "b"]}),
        ([5], {"stop_words": ("a",)}, {"input_token_ids": 5, "stop_words": "a"}),
        ([{"role": "user"}], {"seed": 2**64 - 1},
         {"messages": '[{"role": "user"}]', "seed": 2**64 - 1}),
    ],
)  # fmt: skip
def test_the_request(prompt: Any, generation: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Elements of one are sent without a list, as `generate_stream` has it; a seed is exact."""
    _, body = ask(stream(LAST), prompt, Generation(**generation), 1.5)
    always = {"stream": True, "heartbeat": True, "timeout": 1_500_000, "max_tokens": 1024}
    assert body == always | inputs


@pytest.mark.parametrize("prompt", ["\ud800", [2**31], []])
def test_a_prompt_that_does_not_fit_on_the_wire(prompt: Any) -> None:
    with pytest.raises(HttpError) as raised:
        ask(stream(LAST), prompt)
    assert raised.value.status == 400


def test_the_parts_of_a_piece() -> None:
    """Outputs of one element come without a list, others with one; the last piece has the rest."""
    first = event(text_output="a", output_token_ids=0, num_output_tokens=1, output_log_probs=-0.5,
                  cum_log_probs=-0.5)  # fmt: skip
    last = event(
        text_output="é\n\n",
        output_token_ids=[5, 6],
        num_output_tokens=3,
        num_input_tokens=4,
        output_log_probs=[-1, -2.0],
        cum_log_probs=-3.5,
        finish_reason="stop",
        stop_reason="x",
        sequence_index=0,
        arrival_time_ns=1,
        first_scheduled_time_ns=2,
        first_token_time_ns=3,
        last_token_time_ns=4,
    )
    pieces, _ = ask(stream(first, last))
    assert pieces == [
        Piece("a", (0,), "", "", 0, 1, 0, (-0.5,), -0.5),
        Piece("é\n\n", (5, 6), "stop", "x", 4, 3, 0, (-1.0, -2.0), -3.5, times=Times(1, 2, 3, 4)),
    ]


def test_several_answers() -> None:
    events = [event(text_output=str(i), output_token_ids=i, sequence_index=i) for i in (1, 0)]
    ends = [event(output_token_ids=[], sequence_index=i, finish_reason="stop") for i in (0, 1)]
    generation = Generation(num_return_sequences=2)
    pieces, _ = ask(stream(*events, *ends), "Go", generation)
    assert [(p.sequence_index, p.text) for p in pieces] == [(1, "1"), (0, "0"), (0, ""), (1, "")]
    assert (
        "before the answer did" in error_of(stream(*events, ends[0]), generation=generation).message
    )


@pytest.mark.parametrize("size", [1, 2, 7, 10**6])
def test_events_in_any_pieces_of_bytes(size: int) -> None:
    """Neither a chunk nor a packet is an event: bytes may come one by one, or all at once."""
    body = WORD * 3 + LAST
    data = head() + b"".join(chunk(body[i : i + size]) for i in range(0, len(body), size))
    data += LAST_CHUNK
    script: list[Step] = []
    for i in range(0, len(data), size):
        script += [data[i : i + size], 0.0] if size < 5 else [data[i : i + size]]
    pieces, _ = ask(script)
    assert pieces[:-1] == [PIECE] * 3


def test_more_than_is_read_ahead() -> None:
    text = "x" * 1000
    count = 4 * MAX_BUFFERED_BYTES // 1000
    pieces, _ = ask(stream(*[event(text_output=text, output_token_ids=1)] * count, LAST))
    assert [piece.text for piece in pieces] == [text] * count + [""]


def test_heartbeats_are_no_pieces() -> None:
    pieces, _ = ask([head(), chunk(HEARTBEAT), 0.01, chunk(HEARTBEAT), *stream(WORD, LAST)[1:]])
    assert [piece.text for piece in pieces] == [" word", ""]
    empty_piece = event(text_output="", output_token_ids=5)  # a part of a character
    assert len(ask(stream(empty_piece, LAST))[0]) == 2


@pytest.mark.parametrize(
    ("text", "status", "code", "retry", "message"),
    [
        ("in x: request refused: no\n  such input", 400, None, False, "no such input"),
        ("request refused: 5 are more than the 4 this model holds", 400,
         "context_length_exceeded", False, "maximum context length is 4 tokens: 5 are"),
        ("server overloaded: 64 wait", 429, "overloaded", True, "64 wait"),
        ("server shutting down: try others", 503, "unavailable", True, "try others"),
        ("server unreachable: the engine starts again", 503, "unavailable", True, "starts again"),
        ("deadline exceeded: 1 s", 504, "timeout", False, "1 s"),
        ("engine failed: out of memory", 500, "engine_failed", False, "out of memory"),
        ("what Triton itself says", 500, "engine_failed", False, "what Triton itself says"),
    ],
)  # fmt: skip
def test_an_error_has_its_kind(
    text: str, status: int, code: str | None, retry: bool, message: str
) -> None:
    """Triton 2.51 answers 400 to every error of a model, so the text alone decides."""
    data = event(error=text)
    for script in (
        stream(data, status=400),
        plain(400, {"error": text}),
        stream(HEARTBEAT, data),
        stream(WORD, data),
    ):
        error = error_of(script)
        assert (error.status, error.code) == (status, code)
        assert error.headers == ({"Retry-After": "1"} if retry else {})
        assert message in error.message
        assert "\n" not in error.message


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        (plain(404, {"error": "Request for unknown model"}), 503, "unknown model"),
        (
            plain(400, {"error": "Request for unknown model: 'x' is not found"}),
            503,
            "unknown model",
        ),
        (stream(event(error="'x' version 1 is not at ready state")), 503, "not at ready state"),
        (plain(503, {"error": "exiting"}), 503, "exiting"),
        (plain(500, {"error": "failed to parse"}), 500, "failed to parse"),
        (plain(500, [1]), 500, "Triton answers with status 500"),
        ([CLOSE], 503, "the server closed the connection"),
        ([head(), CLOSE], 503, "the server closed the connection"),
        ([head(), chunk(WORD), CLOSE], 503, "the server closed the connection"),
        ([b"SSH-2.0-OpenSSH\r\n"], 503, "does not answer with HTTP"),
        ([head(), b"zz\r\n"], 503, "does not answer with HTTP"),
        (stream(WORD), 500, "the stream ended before the answer did"),
        (stream(b"data: {\n\n"), 500, "an event that is no piece"),
        (stream(event(output_token_ids="x")), 500, "an event that is no piece"),
        ([LONG], 504, "no whole answer in 0.2 seconds"),
        ([head(), chunk(WORD), LONG], 504, "no whole answer in 0.2 seconds"),
    ],
)
def test_a_server_that_fails(script: Sequence[Step], status: int, message: str) -> None:
    error = error_of(script, seconds=0.2 if LONG in script else LONG)
    assert (error.status, message in error.message) == (status, True), error.message


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no.such.host.invalid:9", "[::1]:9"])
def test_no_server(address: str) -> None:
    with pytest.raises(HttpError, match="no answer from") as raised:
        asyncio.run(pieces_of(Triton(address)))
    assert raised.value.status == 503


def test_a_connection_stays_open_for_the_next_request() -> None:
    async def run() -> None:
        async with ScriptedTriton(stream(WORD, LAST), stream(LAST, status=400)) as server:
            triton = Triton(server.address)
            await pieces_of(triton)
            for _ in range(2):
                with pytest.raises(HttpError):
                    await pieces_of(triton)
            assert server.connections == 1
            await asyncio.gather(*(pieces_of(triton) for _ in range(3)), return_exceptions=True)
            assert server.connections == 3
            triton.close()
            await asyncio.wait_for(server.disconnected.wait(), WAIT)

    asyncio.run(run())


@pytest.mark.parametrize(
    "script", [[head(), chunk(WORD + LAST), CLOSE], [*stream(WORD, LAST), CLOSE]]
)
def test_a_connection_that_the_server_closed_is_not_used_again(script: Sequence[Step]) -> None:
    async def run() -> None:
        async with ScriptedTriton(script, stream(WORD, LAST)) as server:
            triton = Triton(server.address)
            await asyncio.gather(pieces_of(triton), return_exceptions=True)
            await asyncio.sleep(0.05)  # until the end of the connection is here
            assert len(await pieces_of(triton)) == 2
            assert server.connections == 2

    asyncio.run(run())


def test_an_old_connection_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with ScriptedTriton(stream(LAST)) as server:
            triton = Triton(server.address)
            await pieces_of(triton)
            monkeypatch.setattr("nemotron_gateway.http_connection.MAX_IDLE_SECONDS", 0.0)
            await pieces_of(triton)
            assert server.connections == 2
            await asyncio.wait_for(server.disconnected.wait(), WAIT)

    asyncio.run(run())


@pytest.mark.parametrize("script", [[LONG], [head(), chunk(WORD), LONG]])
def test_leaving_an_answer_closes_its_connection(script: Sequence[Step]) -> None:
    """Which cancels the request: before the first piece, and after it."""

    async def run() -> None:
        async with ScriptedTriton(script) as server:
            pieces = Triton(server.address).generate("Go", Generation(), LONG)
            if len(script) == 1:
                task = asyncio.ensure_future(anext(pieces))
                while not server.requests:
                    await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            else:
                async with aclosing(pieces):
                    assert await anext(pieces) == PIECE
            await asyncio.wait_for(server.disconnected.wait(), WAIT)

    asyncio.run(run())


def test_the_model_s_configuration() -> None:
    async def run(script: Sequence[Step]) -> Configuration:
        async with ScriptedTriton(script) as server:
            content = await Triton(server.address).configuration()
            assert server.requests == [("/v2/models/tensorrt_llm_bls/config", None)]
            return content

    content = {"max_batch_size": 8, "parameters": {"max_seq_len": {"string_value": "4096"}}}
    assert asyncio.run(run(plain(200, content))) == Configuration(8, {"max_seq_len": "4096"})
    with pytest.raises(HttpError, match="not found") as raised:
        asyncio.run(run(plain(404, {"error": "not found"})))
    assert raised.value.status == 503


def test_an_idle_connection_that_the_server_closes_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "CANARY_SECONDS", 0.0)

    async def run() -> list[bool]:
        answer = stream(WORD, LAST)
        async with ScriptedTriton(answer, [CLOSE], answer) as server:
            gateway_backend = Backend(GatewaySettings(triton=server.address), Metrics())
            return [await gateway_backend.is_ready() for _ in range(2)]

    assert asyncio.run(run()) == [True, True]
