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
from nemotron_engine.triton import parameter, refuse_parameters, required, tensor, value, values


@dataclass(frozen=True)
class Prompt:
    """What the engine is asked with, and what is needed to make its tokens an answer."""

    settings: AnswerSettings
    tensors: list[Any]
    """Of `contract.PROMPT_OUTPUTS`."""


PROMPTS = ("text_input", "messages", "input_token_ids")
"""The ways to give one."""


class Prompting:
    """The chat template, the tokenizer, the limits."""

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
    def of_model(cls, args: dict[str, str]) -> Prompting:
        """By the parameters of a Triton model's configuration."""
        return cls(
            Path(parameter(args, "tokenizer_path")),
            max_seq_len=int(parameter(args, "max_seq_len")),
            vocab_size=int(parameter(args, "vocab_size")),
            lane=cast(Lane, parameter(args, "lane")),
            clamps=parameter(args, "long_answers") == "clamp",
        )

    def prepare(self, request: Any) -> Prompt:
        """NemotronError says what is wrong with the request."""
        refuse_parameters(request)
        for one in TEXT_INPUTS:
            if one.lanes and self.lane in one.lanes:
                continue
            if (sent := values(request, one.name)) is not None:
                one.refuse(self.lane, sent)
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
        StopStrings(stop_strings)  # refuses what could never match
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
                tensor("input_ids", ids, np.int32),
                tensor("input_lengths", [len(ids)], np.int32),
                tensor("request_output_len", [max_tokens], np.int32),
                tensor("end_id", end_ids[:1], np.int32),
                tensor("stop_words_list", _one_token_stops(end_ids[1:]), np.int32),
                # The engine always streams: only so can a stop string end it early.
                tensor("streaming", [True], np.bool_),
                tensor("stream_id", [settings.stream_id], np.object_),
                tensor("answer_settings", [settings.to_json()], np.object_),
                *self._word_tensors(request),
            ],
        )

    def _word_tensors(self, request: Any) -> list[Any]:
        """What words become for an engine that knows only tokens."""
        made = []
        if bad := [word for word in values(request, "bad_words") or () if word]:
            made.append(tensor("bad_words_list", token_lists(self.tokenizer, bad), np.int32))
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
            made.append(tensor("embedding_bias", bias, np.float32))
        return made

    def _encode(self, request: Any) -> tuple[list[int], bool]:
        """The prompt's ids; whether they went through the chat template."""
        prompts = {name: values(request, name) for name in PROMPTS}
        sent = [name for name, prompt in prompts.items() if prompt is not None]
        if len(sent) != 1:
            raise NemotronError(
                f"send exactly one of {', '.join(PROMPTS)}",
                where=" and ".join(sent) or PROMPTS[0],
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

    def _max_tokens(self, prompt: int, wanted: int) -> int:
        """How long the answer may be."""
        if wanted < 1:
            raise NemotronError(f"max_tokens is {wanted}", remedy="ask for 1 or more")
        if not prompt:
            raise NemotronError("the prompt is empty", where="text_input")
        room = self._max_seq_len - prompt
        if wanted <= room:
            return wanted
        if self._clamps and room > 0:
            return room
        raise NemotronError(
            f"{prompt} prompt tokens and max_tokens {wanted} are more than the "
            f"{self._max_seq_len} this model holds",
            remedy=f"ask for at most {room}" if room > 0 else "shorten the prompt",
        )


def token_lists(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """The classic form [2, n] of words: all sequences' tokens, then where each sequence ends."""
    sequences = [ids for word in words for ids in _spellings(tokenizer, word)]
    ends = list(itertools.accumulate(map(len, sequences)))
    flat = [id_ for ids in sequences for id_ in ids]
    return [flat, ends + [-1] * (len(flat) - len(ends))]


def _spellings(tokenizer: Tokenizer, word: str) -> list[list[int]]:
    """A word's tokens where it continues a text and where a space is in front of it."""
    before = tokenizer.encode("\n")
    spellings = [tokenizer.encode("\n" + text)[len(before) :] for text in (word, " " + word)]
    return [ids for number, ids in enumerate(spellings) if ids and ids not in spellings[:number]]


def _one_token_stops(ids: tuple[int, ...]) -> list[list[int]]:
    """The classic form of sequences of one token each."""
    if not ids:
        return [[0], [-1]]
    return [list(ids), list(range(1, len(ids) + 1))]
