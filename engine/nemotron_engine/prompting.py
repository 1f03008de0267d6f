"""A request's prompt as tokens, with every check that needs no engine."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from nemotron_convert.errors import NemotronError
from nemotron_engine.contract import TEXT_INPUTS, Lane
from nemotron_engine.triton import parameter, refuse_parameters, required, tensor, value, values
from nemotron_text import AnswerSettings, StopStrings, Tokenizer, check_text, parse_messages


@dataclass(frozen=True)
class Prompt:
    """What the engine is asked with, and what is needed to make its tokens an answer."""

    settings: AnswerSettings
    tensors: list[Any]
    """Of `contract.PROMPT_OUTPUTS`."""


class Prompting:
    """The chat template, the tokenizer, the limits."""

    def __init__(self, tokenizer_path: Path, *, max_seq_len: int, lane: Lane) -> None:
        self.tokenizer = Tokenizer(tokenizer_path)
        self._max_seq_len = max_seq_len
        self._lane = lane
        self._stream_ids = (f"{uuid.uuid4().hex}-{number}" for number in itertools.count())

    @classmethod
    def of_model(cls, args: dict[str, str]) -> Prompting:
        """By the parameters of a Triton model's configuration."""
        return cls(
            Path(parameter(args, "tokenizer_path")),
            max_seq_len=int(parameter(args, "max_seq_len")),
            lane=cast(Lane, parameter(args, "lane")),
        )

    def prepare(self, request: Any) -> Prompt:
        """NemotronError says what is wrong with the request."""
        refuse_parameters(request)
        for one in TEXT_INPUTS:
            if one.lanes and self._lane in one.lanes:
                continue
            if (sent := values(request, one.name)) is not None:
                one.refuse(self._lane, sent)
        if not value(request, "exclude_input_in_output", default=True):
            raise NemotronError(
                "an answer never repeats its prompt",
                where="exclude_input_in_output",
                remedy="send true or leave it out",
            )
        ids, chat = self._encode(request)
        max_tokens = required(request, "max_tokens")
        self._check_length(len(ids), max_tokens)
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
            ],
        )

    def _encode(self, request: Any) -> tuple[list[int], bool]:
        """The prompt's ids; whether they went through the chat template."""
        text, messages = value(request, "text_input"), value(request, "messages")
        if (text is None) == (messages is None):
            raise NemotronError(
                "send exactly one of text_input and messages",
                where="text_input" if text is not None else "messages",
                remedy="text_input is a raw prompt, messages go through the chat template",
            )
        if messages is not None:
            return self.tokenizer.encode_chat(parse_messages(messages)), True
        check_text(text, where="text_input")
        return self.tokenizer.encode(text), False

    def _check_length(self, prompt: int, max_tokens: int) -> None:
        if max_tokens < 1:
            raise NemotronError(f"max_tokens is {max_tokens}", remedy="ask for 1 or more")
        if not prompt:
            raise NemotronError("the prompt is empty", where="text_input")
        if prompt + max_tokens > self._max_seq_len:
            room = self._max_seq_len - prompt
            raise NemotronError(
                f"{prompt} prompt tokens and max_tokens {max_tokens} are more than the "
                f"{self._max_seq_len} this model holds",
                remedy=f"ask for at most {room}" if room > 0 else "shorten the prompt",
            )


def _one_token_stops(ids: tuple[int, ...]) -> list[list[int]]:
    """The classic form [2, n]: all stop sequences' tokens, then where each sequence ends."""
    if not ids:
        return [[0], [-1]]
    return [list(ids), list(range(1, len(ids) + 1))]
