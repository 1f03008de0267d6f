"""`PUT /generate`, as NeMo's server answers it: the API of the model's card.

Its checks, defaults and messages are NeMo's. Where NeMo says what is wrong with status 200, this
says it with 400.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from nemotron_client import Generation
from nemotron_core.generation import MAX_SEED
from nemotron_core.openai.errors import HttpError
from nemotron_core.openai.schema import SEED_BITS
from nemotron_core.openai.token_texts import VisibleText
from nemotron_core.text import Tokenizer
from nemotron_gateway.backend import Backend
from nemotron_gateway.call import Call, while_connected
from nemotron_gateway.settings import GatewaySettings

END_OF_TURN = "<extra_id_1>"
END_OF_TEXT = "</s>"


@dataclass(frozen=True)
class Key:
    """One key of a request."""

    default: Any
    is_right: Callable[[Any], bool]
    message: str
    """NeMo's, for a value that is not."""


def _is_int(value: Any, low: float, high: float = math.inf) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


KEYS: Mapping[str, Key] = {
    "tokens_to_generate": Key(
        64,
        lambda v: _is_int(v, 1, 2**31 - 1),
        "tokens_to_generate must be an integer greater than 0",
    ),
    "all_probs": Key(False, _is_bool, "all_probs must be a boolean value"),
    "temperature": Key(
        1.0,
        lambda v: _is_number(v, 0, 100) and v > 0,
        "temperature must be a positive number less than or equal to 100.0",
    ),
    "add_BOS": Key(False, _is_bool, "add_BOS must be a boolean value"),
    "greedy": Key(False, _is_bool, "greedy must be a boolean value"),
    "top_k": Key(0, lambda v: _is_int(v, 0, 2**31 - 1), "top_k must be a positive integer number"),
    "top_p": Key(
        0.9,
        lambda v: _is_number(v, 0, 1),
        "top_p must be a positive number less than or equal to 1.0",
    ),
    "repetition_penalty": Key(
        1.0,
        lambda v: _is_number(v, 1, math.inf) and math.isfinite(v),
        "repetition_penalty must be a positive number no less than 1.0",
    ),
    "end_strings": Key(
        ["<|endoftext|>"], _is_strings, "expect end_strings to be a list of strings"
    ),
    "min_tokens_to_generate": Key(
        0,
        lambda v: _is_int(v, 0, 2**31 - 1),
        "min_tokens_to_generate must be an integer no less than 0",
    ),
    "compute_logprob": Key(False, _is_bool, "compute_logprob must be a boolean value"),
    "random_seed": Key(
        None,
        lambda v: v is None or _is_int(v, 0, MAX_SEED),
        "random_seed must be a positive integer number or None",
    ),
}


class NeMo:
    """The endpoint; every failure is an HttpError."""

    def __init__(self, settings: GatewaySettings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend

    async def generate(self, call: Call) -> None:
        """`PUT /generate`. An error is a JSON string."""
        try:
            request = await call.body()
            sentences, values = check(request)
            self._check_limits(sentences, values)
            await while_connected(call, self._generate(call, sentences, values))
        except HttpError as error:
            await call.respond(error.message, error.status, error.headers)

    def _check_limits(self, sentences: list[str], values: Mapping[str, Any]) -> None:
        limits = self._settings.limits
        if len(sentences) > limits.prompts:
            raise _wrong(f"Maximum number of sentences is {limits.prompts}")
        if max(map(len, sentences)) > limits.prompt_characters:
            raise _wrong(f"a sentence has at most {limits.prompt_characters} characters")
        if values["tokens_to_generate"] > limits.max_tokens:
            raise _wrong(f"tokens_to_generate is at most {limits.max_tokens}")

    async def _generate(self, call: Call, sentences: list[str], values: Mapping[str, Any]) -> None:
        tokenizer = await self._backend.tokenizer("/generate")
        tasks = [
            asyncio.ensure_future(self._sentence(call, tokenizer, sentence, values))
            for sentence in sentences
        ]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await call.respond(
            {
                "sentences": [one.text for one in found],
                "tokens": [one.tokens for one in found],
                "logprob": [one.log_probs for one in found] if values["compute_logprob"] else None,
                "token_ids": [one.token_ids for one in found],
                "offsets": [one.offsets for one in found],
            }
        )

    async def _sentence(
        self, call: Call, tokenizer: Tokenizer, sentence: str, values: Mapping[str, Any]
    ) -> _Sentence:
        ends = tuple(end for end in values["end_strings"] if end)
        if not sentence:
            raise _wrong("a sentence is empty")
        answer = _Sentence(tokenizer, sentence, add_bos=values["add_BOS"])
        prompt_tokens = len(answer.token_ids)
        generation = generation_of(values, tokenizer)
        source = self._backend.generate(answer.token_ids, generation, stream=True)
        reason, count = "", 0
        try:
            async with aclosing(source) as pieces:
                async for piece in pieces:
                    reason = piece.finish_reason
                    log_probs = piece.log_probs or [None] * len(piece.token_ids)
                    for id_, log_prob in zip(piece.token_ids, log_probs, strict=True):
                        answer.push(id_, log_prob)
                        count += 1
                        # As NeMo looks: after each token, at the end of the text.
                        if answer.text.endswith(ends) and count >= values["min_tokens_to_generate"]:
                            return answer
        finally:
            call.count_tokens(prompt_tokens, count)
        if reason == "stop" and answer.token_ids[-1] not in tokenizer.end_ids:
            answer.push(tokenizer.end_ids[0], None)  # TensorRT-LLM's C++ backend leaves it out
        return answer


class _Sentence:
    """A prompt and what the model writes after it."""

    def __init__(self, tokenizer: Tokenizer, prompt: str, *, add_bos: bool) -> None:
        self._tokenizer = tokenizer
        self.token_ids = tokenizer.encode(prompt)
        if add_bos:
            self.token_ids.insert(0, _bos(tokenizer))
        self.tokens = [tokenizer.piece(id_) for id_ in self.token_ids]
        self.log_probs: list[float | None] = [None] * max(0, len(self.token_ids) - 1)
        """Of each token but the first, as NeMo has it; the engine tells none of the prompt's."""
        self.offsets = _prompt_offsets(tokenizer, self.token_ids, prompt)
        self._visible = VisibleText(tokenizer, prompt)

    @property
    def text(self) -> str:
        return self._visible.text

    def push(self, id_: int, log_prob: float | None) -> None:
        self.token_ids.append(id_)
        self.tokens.append(self._tokenizer.piece(id_))
        self.log_probs.append(log_prob)
        self.offsets.append(self._visible.push(id_))


def check(request: Any) -> tuple[list[str], dict[str, Any]]:
    """The sentences and every other key's value; HttpError with NeMo's text."""
    if not isinstance(request, dict) or "sentences" not in request:
        raise _wrong("sentences is missing: send a JSON object with a list of strings")
    sentences = request["sentences"]
    if not _is_strings(sentences) or not sentences:
        raise _wrong("sentences must be a list of strings")
    values = {name: request.get(name, key.default) for name, key in KEYS.items()}
    for name, key in KEYS.items():
        if not key.is_right(values[name]):
            raise _wrong(key.message)
    if values["all_probs"]:
        raise _wrong("all_probs is not served: the engine tells the chosen tokens' only")
    return sentences, values


def generation_of(values: Mapping[str, Any], tokenizer: Tokenizer) -> Generation:
    """As the engine understands it.

    NeMo ends at `</s>` alone; `<extra_id_1>` ends an answer because the caller says so.
    """
    ends_turn = END_OF_TURN in values["end_strings"]
    greedy = values["greedy"]
    seed = values["random_seed"]
    return Generation(
        max_tokens=values["tokens_to_generate"],
        temperature=0.0 if greedy else float(values["temperature"]),
        top_k=values["top_k"] or None,
        top_p=float(values["top_p"]) or None,
        repetition_penalty=float(values["repetition_penalty"]),
        min_tokens=min(values["min_tokens_to_generate"], values["tokens_to_generate"]),
        seed=secrets.randbits(SEED_BITS) if seed is None and not greedy else seed,
        end_id=None if ends_turn else tokenizer.id_of(END_OF_TEXT),
        return_log_probs=values["compute_logprob"] or None,
    )


def _bos(tokenizer: Tokenizer) -> int:
    if (bos := tokenizer.id_of("<s>")) is None:
        raise _wrong("add_BOS: the model's tokenizer has no such token")
    return bos


def _prompt_offsets(tokenizer: Tokenizer, ids: list[int], prompt: str) -> list[int]:
    """Where each token's characters begin; SentencePiece may normalize, so never past the end."""
    visible = VisibleText(tokenizer, "")
    return [min(visible.push(id_), len(prompt)) for id_ in ids]


def _wrong(message: str) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, message)
