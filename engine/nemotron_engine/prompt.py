"""A request's prompt as tokens, with every check that needs no engine."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from nemotron_core.errors import NemotronError
from nemotron_core.text import AnswerSettings, StopStrings, Tokenizer, check_text, parse_messages
from nemotron_core.wire import TEXT_INPUTS, Lane
from nemotron_engine.triton import parameter, refuse_unsupported, required, tensor, value, values


@dataclass(frozen=True)
class Prompt:
    """A prompt for the engine, and the settings that turn the engine's tokens into an answer."""

    settings: AnswerSettings
    tensors: list[Any]
    """The tensors of `wire.PROMPT_OUTPUTS`."""


PROMPTS = ("text_input", "messages", "input_token_ids")
"""The inputs that can hold the prompt; a request sends exactly one of them."""


class PromptBuilder:
    """Makes prompts with the chat template, the tokenizer and the limits of one model."""

    def __init__(
        self,
        tokenizer_path: Path,
        *,
        max_seq_len: int,
        vocab_size: int,
        lane: Lane,
        clamps: bool,
    ) -> None:
        self.tokenizer = Tokenizer(tokenizer_path)
        self.lane = lane
        self._max_seq_len = max_seq_len
        self._vocab_size = vocab_size
        self._clamps = clamps
        self._stream_ids = (f"{uuid.uuid4().hex}-{number}" for number in itertools.count())

    @classmethod
    def of_model(cls, args: dict[str, str]) -> PromptBuilder:
        """Return the builder that the parameters of a Triton model's configuration describe."""
        return cls(
            Path(parameter(args, "tokenizer_path")),
            max_seq_len=int(parameter(args, "max_seq_len")),
            vocab_size=int(parameter(args, "vocab_size")),
            lane=cast(Lane, parameter(args, "lane")),
            clamps=parameter(args, "long_answers") == "clamp",
        )

    def build(self, request: Any) -> Prompt:
        """Return a request's prompt. Raises `NemotronError` if the request is invalid."""
        refuse_unsupported(request, TEXT_INPUTS, self.lane)
        if not value(request, "exclude_input_in_output", default=True):
            raise NemotronError(
                "an answer never repeats its prompt",
                where="exclude_input_in_output",
                remedy="send true or leave it out",
            )
        ids, chat = self._encode(request)
        max_tokens = self._max_tokens(len(ids), required(request, "max_tokens"))
        # Some clients send one empty string for "none".
        stop_strings = tuple(text for text in values(request, "stop_words") or () if text)
        StopStrings(stop_strings)  # raises if a stop string can never match
        end_id = value(request, "end_id")
        end_ids = self.tokenizer.end_ids if end_id is None else (end_id,)
        settings = AnswerSettings(
            stream_id=next(self._stream_ids),
            chat=chat,
            stream=value(request, "stream", default=False),
            end_ids=end_ids,
            stop_strings=stop_strings,
            num_input_tokens=len(ids),
            max_tokens=max_tokens,
        )
        return Prompt(
            settings,
            [
                tensor("input_ids", ids),
                tensor("input_lengths", [len(ids)]),
                tensor("request_output_len", [max_tokens]),
                tensor("end_id", end_ids[:1]),
                tensor("stop_words_list", _one_token_stops(end_ids[1:])),
                # The engine always streams: only so can a stop string end it early.
                tensor("streaming", [True]),
                tensor("stream_id", [settings.stream_id]),
                tensor("answer_settings", [settings.to_json()]),
                *self._word_tensors(request),
            ],
        )

    def _word_tensors(self, request: Any) -> list[Any]:
        """Return the tensors of bad words and biased words, which an engine takes as tokens."""
        tensors = []
        if bad := [word for word in values(request, "bad_words") or () if word]:
            tensors.append(tensor("bad_words_list", token_lists(self.tokenizer, bad)))
        words = [word for word in values(request, "embedding_bias_words") or () if word]
        weights = values(request, "embedding_bias_weights") or []
        if len(words) != len(weights) and (words or any(weights)):
            raise NemotronError(
                f"{len(words)} embedding_bias_words have {len(weights)} weights",
                where="embedding_bias_weights",
                remedy="send one for each word",
            )
        if words:
            bias = np.zeros(self._vocab_size, np.float32)
            for word, weight in zip(words, weights, strict=True):
                for ids in _spellings(self.tokenizer, word):
                    bias[ids] += weight
            tensors.append(tensor("embedding_bias", bias))
        return tensors

    def _encode(self, request: Any) -> tuple[list[int], bool]:
        """Return the prompt's token ids, and whether they went through the chat template."""
        prompts = {name: values(request, name) for name in PROMPTS}
        names = [name for name, prompt in prompts.items() if prompt is not None]
        if len(names) != 1:
            raise NemotronError(
                f"send exactly one of {', '.join(PROMPTS)}",
                where=" and ".join(names) or PROMPTS[0],
                remedy="text_input is a raw prompt, messages go through the chat template, "
                "input_token_ids are the raw prompt's tokens",
            )
        if (ids := prompts["input_token_ids"]) is not None:
            self._check_ids(ids)
            return ids, False
        if prompts["messages"] is not None:
            return self.tokenizer.encode_chat(parse_messages(value(request, "messages"))), True
        text = value(request, "text_input")
        check_text(text, where="text_input")
        return self.tokenizer.encode(text), False

    def _check_ids(self, ids: list[int]) -> None:
        if bad := [id_ for id_ in ids if not 0 <= id_ < self._vocab_size]:
            raise NemotronError(
                f"token id {bad[0]} is outside the vocabulary of {self._vocab_size}",
                where="input_token_ids",
            )

    def _max_tokens(self, prompt_length: int, max_tokens: int) -> int:
        """Return the limit for the answer's tokens: `max_tokens`, or the room if that clamps."""
        if max_tokens < 1:
            raise NemotronError(f"max_tokens is {max_tokens}", remedy="ask for 1 or more")
        if not prompt_length:
            raise NemotronError("the prompt is empty", where="text_input")
        room = self._max_seq_len - prompt_length
        if max_tokens <= room:
            return max_tokens
        if self._clamps and room > 0:
            return room
        raise NemotronError(
            f"{prompt_length} prompt tokens and max_tokens {max_tokens} are more than the "
            f"{self._max_seq_len} this model holds",
            remedy=f"ask for at most {room}" if room > 0 else "shorten the prompt",
        )


def token_lists(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """Return words in the classic form [2, n]: all sequences' tokens, then each sequence's end."""
    sequences = [ids for word in words for ids in _spellings(tokenizer, word)]
    end_positions = list(itertools.accumulate(map(len, sequences)))
    flat = [id_ for ids in sequences for id_ in ids]
    return [flat, end_positions + [-1] * (len(flat) - len(end_positions))]


def _spellings(tokenizer: Tokenizer, word: str) -> list[list[int]]:
    """Return a word's tokens where it continues a text, and where a space is in front of it."""
    newline = tokenizer.encode("\n")
    spellings = [tokenizer.encode("\n" + text)[len(newline) :] for text in (word, " " + word)]
    return [ids for number, ids in enumerate(spellings) if ids and ids not in spellings[:number]]


def _one_token_stops(ids: tuple[int, ...]) -> list[list[int]]:
    """Return end tokens in the classic form of `token_lists`, as sequences of one token each."""
    if not ids:
        return [[0], [-1]]
    return [list(ids), list(range(1, len(ids) + 1))]
