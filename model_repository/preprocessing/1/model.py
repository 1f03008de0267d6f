"""Prompt in, tokens out: the chat template, the tokenizer, and every check on the prompt."""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_convert.errors import NemotronError
from nemotron_engine.triton import (
    parameter,
    refusal,
    refuse_parameters,
    required,
    shutting_down,
    tensor,
    value,
    values,
)
from nemotron_text import AnswerSettings, StopStrings, Tokenizer, check_text, parse_messages


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._tokenizer = Tokenizer(Path(parameter(args, "tokenizer_path")))
        self._max_seq_len = int(parameter(args, "max_seq_len"))
        self._drain_file = Path(parameter(args, "drain_file"))
        self._stream_ids = (f"{uuid.uuid4().hex}-{number}" for number in itertools.count())

    def execute(self, requests: list[Any]) -> list[Any]:
        if self._drain_file.exists():
            return [shutting_down() for _request in requests]
        responses = []
        for request in requests:
            try:
                responses.append(pb_utils.InferenceResponse(self._tensors(request)))
            except NemotronError as error:
                responses.append(refusal(error))
        return responses

    def _tensors(self, request: Any) -> list[Any]:
        refuse_parameters(request)
        if not value(request, "exclude_input_in_output", default=True):
            raise NemotronError(
                "an answer never repeats its prompt",
                where="exclude_input_in_output",
                remedy="send true or leave it out",
            )
        text, messages = value(request, "text_input"), value(request, "messages")
        if (text is None) == (messages is None):
            raise NemotronError(
                "send exactly one of text_input and messages",
                where="text_input" if text is not None else "messages",
                remedy="text_input is a raw prompt, messages go through the chat template",
            )
        if messages is not None:
            ids = self._tokenizer.encode_chat(parse_messages(messages))
        else:
            check_text(text, where="text_input")
            ids = self._tokenizer.encode(text)
        max_tokens = required(request, "max_tokens")
        self._check_length(len(ids), max_tokens)
        stop_strings = tuple(values(request, "stop_words") or ())
        StopStrings(stop_strings)  # refuses what could never match
        end_id = value(request, "end_id")
        end_ids = self._tokenizer.end_ids if end_id is None else (end_id,)
        settings = AnswerSettings(
            stream_id=next(self._stream_ids),
            chat=messages is not None,
            stream=value(request, "stream", default=False),
            end_ids=end_ids,
            stop_strings=stop_strings,
            num_input_tokens=len(ids),
        )
        return [
            tensor("input_ids", ids, np.int32),
            tensor("input_lengths", [len(ids)], np.int32),
            tensor("request_output_len", [max_tokens], np.int32),
            tensor("end_id", end_ids[:1], np.int32),
            tensor("stop_words_list", _one_token_stops(end_ids[1:]), np.int32),
            # The engine always streams: only so can a stop string end it early.
            tensor("streaming", [True], np.bool_),
            tensor("stream_id", [settings.stream_id], np.object_),
            tensor("answer_settings", [settings.to_json()], np.object_),
        ]

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
