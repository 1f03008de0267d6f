"""Triton's text model over HTTP: requests to `generate_stream`, its events as pieces and errors."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from nemotron_core.errors import ErrorKind
from nemotron_core.generation import (
    Alternatives,
    Generation,
    Piece,
    Prompt,
    Times,
    read_alternatives,
    request_inputs,
)
from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_core.openai.reward import TurnScores
from nemotron_gateway.http_connection import Connections, DeadlineExceeded
from nemotron_gateway.turn_scores import read_turns

TEXT_MODEL = "tensorrt_llm_bls"
REWARD_MODEL = "reward"
CONFIGURATION_SECONDS = 10.0
EVENT_PREFIX = b"data: "
EVENT_END = b"\n\n"
NOT_LOADED = ("unknown model", "is not ready", "is not at ready state")
"""Words of Triton about a model that it has not loaded yet, or no more."""
TOO_LONG = re.compile(r"more than (?:the )?(\d+) (?:this model holds|tokens can hold)")
API_KEYS = {
    "bias_token_ids": "logit_bias",
    "bias_values": "logit_bias",
    "num_top_log_probs": "top_logprobs",
    "num_prompt_log_probs": "prompt_logprobs",
    "guided_decoding_guide_type": "response_format",
    "guided_decoding_guide": "response_format",
    "end_id": "ignore_eos",
}
"""Keys of OpenAI's API for inputs of the contract that have another name."""
PLACE = re.compile(r"\[(\w+)]")
"""An input's name in the text of an error."""


@dataclass(frozen=True)
class Configuration:
    """The configuration of Triton's text model."""

    slots: int
    """Number of sequences that the engine computes at the same time."""
    parameters: dict[str, str]


class Triton:
    """The text model of the Triton server at `address` (host:port). Failures are `HttpError`s."""

    def __init__(self, address: str, on_lost: Callable[[], None] = lambda: None) -> None:
        self._address = address
        self._path = f"/v2/models/{TEXT_MODEL}"
        self._connections = Connections(address, on_lost)

    def close(self) -> None:
        """Close all idle connections."""
        self._connections.close()

    async def generate(
        self, prompt: Prompt, generation: Generation, seconds: float
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of all answers to a prompt, for at most `seconds`.

        If the generator is closed before its end, the connection is closed, which cancels the
        request in the engine.
        """
        body = _request_body(prompt, generation, seconds)
        unfinished = generation.num_return_sequences or 1
        with self._translated_errors(seconds):
            async with self._connections.request(
                "POST", f"{self._path}/generate_stream", seconds, body
            ) as response:
                if response.status != HTTPStatus.OK:
                    raise _error_response(response.status, await response.read_all())
                rest = b""
                while data := await response.read():
                    *events, rest = (rest + data).split(EVENT_END)
                    for event in events:
                        piece = _read_event(event, generation)
                        if piece is None:
                            continue
                        if piece.finish_reason:
                            unfinished -= 1
                        yield piece
        if unfinished > 0:
            raise HttpError.of_kind(ErrorKind.FAILED, "the stream ended before the answer did")

    async def score(
        self, messages: Sequence[Mapping[str, str]], turns: str, seconds: float
    ) -> list[TurnScores]:
        """Return the scores of a conversation's turns, in at most `seconds`."""
        body: dict[str, Any] = {
            "messages": json.dumps(messages),
            "turns": turns,
            "timeout": max(1, round(seconds * 1e6)),
        }
        with self._translated_errors(seconds):
            async with self._connections.request(
                "POST", f"/v2/models/{REWARD_MODEL}/generate", seconds, msgspec.json.encode(body)
            ) as response:
                content = await response.read_all()
        if response.status != HTTPStatus.OK:
            raise _error_response(response.status, content)
        return read_turns(content)

    async def configuration(self) -> Configuration:
        """Return the model's configuration."""
        with self._translated_errors(CONFIGURATION_SECONDS):
            async with self._connections.request(
                "GET", f"{self._path}/config", CONFIGURATION_SECONDS
            ) as response:
                content = await response.read_all()
        if response.status != HTTPStatus.OK:
            raise _error_response(response.status, content)
        configuration = json.loads(content)
        parameters = {
            name: parameter["string_value"]
            for name, parameter in configuration["parameters"].items()
        }
        return Configuration(configuration.get("max_batch_size", 0) or 1, parameters)

    @contextmanager
    def _translated_errors(self, seconds: float) -> Iterator[None]:
        """Raise the failures of a connection as `HttpError`s."""
        try:
            yield
        except OSError as error:
            message = f"no answer from {self._address}: {error}"
            raise HttpError.of_kind(ErrorKind.UNREACHABLE, message) from error
        except DeadlineExceeded as error:
            message = f"no whole answer in {seconds:g} seconds"
            raise HttpError.of_kind(ErrorKind.TIMED_OUT, message) from error


def _request_body(prompt: Prompt, generation: Generation, seconds: float) -> bytes:
    """Return the JSON of a request. Raises `HttpError` if the prompt does not fit on the wire."""
    try:
        inputs = request_inputs(prompt, generation, stream=True)
    except ValueError as error:
        raise bad_request(str(error)) from error
    body: dict[str, Any] = {"heartbeat": True, "timeout": max(1, round(seconds * 1e6))}
    body |= {name: values[0] if len(values) == 1 else values for name, values in inputs.items()}
    return msgspec.json.encode(body)


class _Event(msgspec.Struct):
    """An event of a stream: an error, or the outputs of a response.

    Triton writes an output of one element as that element, any other as a list.
    """

    error: str = ""
    text_output: str = ""
    output_token_ids: int | tuple[int, ...] = ()
    finish_reason: str = ""
    stop_reason: str = ""
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    sequence_index: int = 0
    output_log_probs: float | tuple[float, ...] = ()
    top_token_ids: int | tuple[int, ...] = ()
    top_log_probs: float | tuple[float, ...] = ()
    prompt_top_token_ids: int | tuple[int, ...] = ()
    prompt_top_log_probs: float | tuple[float, ...] = ()
    cum_log_probs: float | None = None
    arrival_time_ns: int | None = None
    first_scheduled_time_ns: int = 0
    first_token_time_ns: int = 0
    last_token_time_ns: int = 0


_decode_event = msgspec.json.Decoder(_Event).decode


def _read_event(data: bytes, generation: Generation) -> Piece | None:
    """Return the piece in an event, or `None` if it is a heartbeat. Raises its error."""
    try:
        event = _decode_event(data[len(EVENT_PREFIX) :])
    except msgspec.MsgspecError as error:
        message = f"Triton sent an event that is no piece of an answer: {error}"
        raise HttpError.of_kind(ErrorKind.FAILED, message) from error
    if event.error:
        raise _error_of_text(event.error)
    token_ids, log_probs = event.output_token_ids, event.output_log_probs
    if not (token_ids or token_ids == 0 or event.text_output or event.finish_reason):
        return None
    times = None
    if event.arrival_time_ns is not None:
        times = Times(
            event.arrival_time_ns,
            event.first_scheduled_time_ns,
            event.first_token_time_ns,
            event.last_token_time_ns,
        )
    return Piece(
        event.text_output,
        (token_ids,) if isinstance(token_ids, int) else token_ids,
        event.finish_reason,
        event.stop_reason,
        event.num_input_tokens,
        event.num_output_tokens,
        event.sequence_index,
        (log_probs,) if isinstance(log_probs, float) else log_probs,
        event.cum_log_probs,
        _table(event.top_token_ids, event.top_log_probs, generation.num_top_log_probs or 0),
        _table(
            event.prompt_top_token_ids,
            event.prompt_top_log_probs,
            1 + (generation.num_prompt_log_probs or 0),
        ),
        times,
    )


def _table(
    ids: int | tuple[int, ...], log_probs: float | tuple[float, ...], width: int
) -> tuple[Alternatives, ...]:
    if isinstance(ids, int):
        ids = (ids,)
    if isinstance(log_probs, float):
        log_probs = (log_probs,)
    return read_alternatives(ids, log_probs, width) if ids else ()


def _error_response(status: int, content: bytes) -> HttpError:
    """Return the error of a response that is not 200.

    `generate_stream` sends it as an event. Triton itself sends plain JSON, and answers 404 while
    the model is not loaded.
    """
    try:
        text = _decode_event(content.removeprefix(EVENT_PREFIX)).error
    except msgspec.MsgspecError:
        text = ""
    text = text or f"Triton answers with status {status}"
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE):
        return HttpError.of_kind(ErrorKind.UNREACHABLE, text)
    return _error_of_text(text)


def _error_of_text(text: str) -> HttpError:
    """Return the error that a text of Triton describes, by the kind that it names."""
    kind, message = ErrorKind.split(text)
    if kind is ErrorKind.REFUSED:
        return _refusal(message.removeprefix(kind.value))
    if kind is None and any(words in message for words in NOT_LOADED):
        kind = ErrorKind.UNREACHABLE
    return HttpError.of_kind(kind or ErrorKind.FAILED, message)


def _refusal(message: str) -> HttpError:
    """Return the error for a request that a model refuses, in the words of OpenAI's API."""
    if match := TOO_LONG.search(message):
        # Programs look for this sentence, to shorten the prompt and try again.
        limit = f"This model's maximum context length is {match[1]} tokens: "
        return bad_request(limit + message, code="context_length_exceeded")
    for name, key in API_KEYS.items():
        message = re.sub(rf"\b{name}\b", key, message)
    place = PLACE.search(message)
    return bad_request(message, place[1] if place else None)
