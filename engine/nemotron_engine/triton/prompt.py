"""A request's prompts as tokens, with every check that needs no engine."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from nemotron_core.errors import NemotronError
from nemotron_core.generation import MAX_SEED
from nemotron_core.text import (
    Message,
    StopStrings,
    Tokenizer,
    check_text,
    parse_messages,
    render_prompt,
)
from nemotron_engine.client import new_key
from nemotron_engine.protocol import Hello, Request
from nemotron_engine.triton.tensors import Inputs, Options

PROMPTS = ("text_input", "messages", "input_token_ids")
"""The inputs that can hold the prompt; each row of a request has exactly one of them."""
MAX_SEQUENCES = 64
GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this one are greedy."""
SHORT_CHARACTERS = 1 << 14
"""Texts up to this length are tokenized in a few milliseconds."""


class AnswerSettings(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What turns the tokens of one answer into its text and its outputs."""

    chat: bool = False
    """Whether the prompt is a conversation; see `AnswerStream`."""
    end_ids: list[int] = []
    stop_strings: list[str] = []
    prefix: str = ""
    """Text in front of the answer: its prompt, if the request asks for it."""
    prefix_ids: list[int] = []
    """The same as tokens, where the outputs are tokens."""
    num_input_tokens: int = 0
    batch_index: int = 0
    sequence_index: int = 0


class RequestSettings(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What all answers to one request have in common."""

    stream: bool = False
    """Whether the client receives the answers in pieces."""
    log_probs: bool = False
    times: bool = False
    cache_stats: bool = False
    pad_id: int = 0
    """Token that fills up the rows of outputs with several answers."""


class Prompts(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """The sequences of one request, in the order batch, then sequence, and their answers."""

    requests: list[Request]
    answers: list[AnswerSettings]
    settings: RequestSettings

    @classmethod
    def of_rows(
        cls, rows: Iterable[tuple[Request, AnswerSettings, int]], settings: RequestSettings
    ) -> Prompts:
        """Return the sequences of each row's prompt, which has a number of answers.

        Each sequence gets a key of its own, and the seed of its row plus its index.
        """
        requests, answers = [], []
        for request, answer, count in rows:
            for index in range(count):
                seed = (request.seed + index) % (MAX_SEED + 1)
                requests.append(replace(request, key=new_key(), seed=seed))
                answers.append(replace(answer, sequence_index=index))
        return cls(requests=requests, answers=answers, settings=settings)


class PromptBuilder:
    """Makes prompts with the chat template, the tokenizer and the limits of one model."""

    def __init__(self, tokenizer_path: Path, *, clamps: bool) -> None:
        self.tokenizer = Tokenizer(tokenizer_path)
        self._clamps = clamps
        pieces = (self.tokenizer.piece(id_) for id_ in range(self.tokenizer.vocab_size))
        self._longest_piece = max(map(len, pieces))

    def is_long(self, inputs: Inputs) -> bool:
        """Return whether tokenizing the prompts may take longer than a few milliseconds."""
        return self._characters(inputs) > SHORT_CHARACTERS

    def build(self, inputs: Inputs, options: Options, request_id: str, hello: Hello) -> Prompts:
        """Return a request's prompts. Raises `NemotronError` if the request is invalid."""
        limit = len(inputs) * hello.max_seq_len * self._longest_piece
        if (characters := self._characters(inputs)) > limit:
            raise NemotronError(
                f"{characters} characters are more than {hello.max_seq_len} tokens can hold",
                remedy="shorten the prompt",
            )
        prompts = [
            (
                *self._prompt(inputs, row, options, request_id, hello),
                sequence_count(inputs, row),
            )
            for row in range(len(inputs))
        ]
        stream = inputs.value(0, "stream", default=False)
        return Prompts.of_rows(prompts, request_settings(inputs, stream=stream))

    def _characters(self, inputs: Inputs) -> int:
        return sum(
            len(text)
            for row in range(len(inputs))
            for name in ("text_input", "messages")
            for text in inputs.values(row, name) or ()
        )

    def _prompt(
        self, inputs: Inputs, row: int, options: Options, request_id: str, hello: Hello
    ) -> tuple[Request, AnswerSettings]:
        ids, messages = self._encode(inputs, row, hello)
        # Some clients send one empty string for "none".
        stop_strings = [text for text in inputs.values(row, "stop_words") or () if text]
        StopStrings(stop_strings)  # raises if a stop string can never match
        end_ids = end_ids_of(inputs, row, self.tokenizer.end_ids)
        request = Request(
            **common_fields(inputs, row, options, request_id),
            input_ids=ids,
            max_tokens=self._max_tokens(
                len(ids), inputs.required(row, "max_tokens"), hello.max_seq_len
            ),
            end_ids=end_ids,
            **sampling(inputs, row, "top_k", "top_p"),
            bad_sequences=self._bad_sequences(inputs, row),
            bias=self._bias(inputs, row),
        )
        prefix = ""
        if not inputs.value(row, "exclude_input_in_output", default=True):
            prefix = (
                render_prompt(messages)
                if messages
                else self.tokenizer.decode(ids, show_control=True)
            )
        return request, AnswerSettings(
            chat=messages is not None,
            end_ids=end_ids,
            stop_strings=stop_strings,
            prefix=prefix,
            num_input_tokens=len(ids),
            batch_index=row,
        )

    def _encode(
        self, inputs: Inputs, row: int, hello: Hello
    ) -> tuple[list[int], list[Message] | None]:
        """Return the prompt's token ids, and its messages if it is a conversation."""
        prompts = {name: inputs.values(row, name) for name in PROMPTS}
        names = [name for name, prompt in prompts.items() if prompt is not None]
        if len(names) != 1:
            raise NemotronError(
                f"send exactly one of {', '.join(PROMPTS)}",
                where=" and ".join(names) or PROMPTS[0],
                remedy="text_input is a raw prompt, messages go through the chat template, "
                "input_token_ids are the raw prompt's tokens",
            )
        if (ids := prompts["input_token_ids"]) is not None:
            if bad := [id_ for id_ in ids if not 0 <= id_ < hello.vocab_size]:
                raise NemotronError(
                    f"token id {bad[0]} is outside the vocabulary of {hello.vocab_size}",
                    where="input_token_ids",
                )
            return ids, None
        if prompts["messages"] is not None:
            messages = parse_messages(inputs.value(row, "messages"))
            return self.tokenizer.encode_chat(messages), messages
        text = inputs.value(row, "text_input")
        check_text(text, where="text_input")
        return self.tokenizer.encode(text), None

    def _max_tokens(self, prompt_length: int, max_tokens: int, max_seq_len: int) -> int:
        """Return the limit for the answer's tokens: `max_tokens`, or the room if that clamps."""
        if max_tokens < 1:
            raise NemotronError(f"max_tokens is {max_tokens}", remedy="ask for 1 or more")
        if not prompt_length:
            raise NemotronError("the prompt is empty", where="text_input")
        room = max_seq_len - prompt_length
        if max_tokens <= room:
            return max_tokens
        if self._clamps and room > 0:
            return room
        raise NemotronError(
            f"{prompt_length} prompt tokens and max_tokens {max_tokens} are more than the "
            f"{max_seq_len} this model holds",
            remedy=f"ask for at most {room}" if room > 0 else "shorten the prompt",
        )

    def _bad_sequences(self, inputs: Inputs, row: int) -> list[list[int]]:
        words = [word for word in inputs.values(row, "bad_words") or () if word]
        return [ids for word in words for ids in spellings(self.tokenizer, word)]

    def _bias(self, inputs: Inputs, row: int) -> dict[int, float]:
        words = [word for word in inputs.values(row, "embedding_bias_words") or () if word]
        weights = inputs.values(row, "embedding_bias_weights") or []
        if len(words) != len(weights) and (words or any(weights)):
            raise NemotronError(
                f"{len(words)} embedding_bias_words have {len(weights)} weights",
                where="embedding_bias_weights",
                remedy="send one for each word",
            )
        bias: dict[int, float] = {}
        for word, weight in zip(words, weights, strict=False):
            for id_ in {id_ for ids in spellings(self.tokenizer, word) for id_ in ids}:
                bias[id_] = bias.get(id_, 0.0) + weight
        return bias


def sequence_count(inputs: Inputs, row: int) -> int:
    """Return the number of answers to a row's prompt."""
    count: int = inputs.value(row, "num_return_sequences", default=1)
    if not 1 <= count <= MAX_SEQUENCES:
        raise NemotronError(f"num_return_sequences is {count}", remedy=f"use 1 to {MAX_SEQUENCES}")
    return count


def request_settings(inputs: Inputs, *, stream: bool) -> RequestSettings:
    """Return the settings that all answers to a request have in common, from its first row."""
    return RequestSettings(
        stream=stream,
        log_probs=inputs.value(0, "return_log_probs", default=False),
        times=inputs.value(0, "return_perf_metrics", default=False),
        cache_stats=inputs.value(0, "return_kv_cache_reuse_stats", default=False),
        pad_id=inputs.value(0, "pad_id", default=0),
    )


def end_ids_of(inputs: Inputs, row: int, default: Sequence[int]) -> list[int]:
    """Return the tokens that end an answer: the input `end_id`, where -1 means none."""
    end_id = inputs.value(row, "end_id")
    if end_id is None:
        return list(default)
    return [] if end_id == -1 else [end_id]


def common_fields(inputs: Inputs, row: int, options: Options, request_id: str) -> dict[str, Any]:
    """Return the fields of a request that text models and `tensorrt_llm` read in the same way."""
    fields = {
        "repetition_penalty": inputs.value(row, "repetition_penalty"),
        "presence_penalty": inputs.value(row, "presence_penalty"),
        "frequency_penalty": inputs.value(row, "frequency_penalty"),
        "min_tokens": _either(inputs, row, "min_tokens", "min_length"),
        "log_probs": inputs.value(row, "return_log_probs"),
        "guide_type": inputs.value(row, "guided_decoding_guide_type"),
        "guide": inputs.value(row, "guided_decoding_guide"),
    }
    return {
        "key": b"",
        "seconds": options.seconds,
        "priority": options.priority,
        "request_id": request_id,
        **{name: value for name, value in fields.items() if value is not None},
    }


def sampling(inputs: Inputs, row: int, top_k_name: str, top_p_name: str) -> dict[str, Any]:
    """Return the fields that say how tokens are drawn, by the rule of the classic backend.

    Tokens are drawn only if `top_k` is more than 1, or if `top_p` is positive and `top_k` is not 1;
    a temperature alone does not draw. Without a seed each request gets a new one.
    """
    temperature = inputs.value(row, "temperature", default=1.0)
    top_k = inputs.value(row, top_k_name, default=0)
    top_p = inputs.value(row, top_p_name, default=0.0)
    if 0 <= temperature < GREEDY_TEMPERATURE or top_k == 1 or (not top_k and not top_p):
        # Values that make no sense are refused, even where they have no effect.
        return {"temperature": min(temperature, 0.0), "top_k": top_k, "top_p": top_p}
    seed = _either(inputs, row, "seed", "random_seed")
    return {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p or 1.0,
        "seed": secrets.randbits(63) if seed is None else seed,
    }


def spellings(tokenizer: Tokenizer, word: str) -> list[list[int]]:
    """Return a word's tokens where it continues a text, and where a space is in front of it."""
    newline = tokenizer.encode("\n")
    lists = [tokenizer.encode("\n" + text)[len(newline) :] for text in (word, " " + word)]
    return [ids for number, ids in enumerate(lists) if ids and ids not in lists[:number]]


def token_sequences(flat: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
    """Return the sequences of the classic form: all tokens, and where each sequence ends.

    >>> token_sequences([7, 8, 9], [2, 3, -1])
    [[7, 8], [9]]
    """
    positions = [end for end in ends if end > 0]
    starts = [0, *positions]
    if any(end > len(flat) or end <= start for start, end in zip(starts, positions, strict=False)):
        raise NemotronError(f"the ends {positions} do not rise up to the {len(flat)} tokens")
    return [list(flat[start:end]) for start, end in itertools.pairwise(starts)]


def _either(inputs: Inputs, row: int, name: str, older_name: str) -> Any:
    """Return an input, which older releases of the contract call by another name."""
    value = inputs.value(row, name)
    return inputs.value(row, older_name) if value is None else value
