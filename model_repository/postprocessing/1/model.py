"""Tokens in, text out: one running answer per sequence of a request, in the engine's order."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from nemotron_core.errors import NemotronError
from nemotron_core.text import AnswerSettings, Tokenizer
from nemotron_engine.cancellation import Listener
from nemotron_engine.inner_request import forget_all
from nemotron_engine.running_answer import RunningAnswer, read_step, stop_engine
from nemotron_engine.triton import (
    error_response,
    error_response_of_text,
    is_engine_failure,
    parameter,
    required,
    values,
)

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
MAX_ANSWERS = 16384
"""More than ever run at once. Only an engine that fails in the middle leaves an answer behind; past
this many, the one that was silent for longest goes."""


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._tokenizer = Tokenizer(Path(parameter(args, "tokenizer_path")))
        self._answers: OrderedDict[tuple[str, int], tuple[RunningAnswer, Listener]] = OrderedDict()

    def finalize(self) -> None:
        forget_all()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                response = self._push(request)
            except NemotronError as error:
                response = error_response(error)
            if response:
                sender.send(response, flags=FINAL)
            else:
                sender.send(flags=FINAL)

    def _push(self, request: Any) -> Any:
        """The response to send, or None."""
        step = read_step(partial(values, request))
        key = required(request, "answer_settings"), step.sequence
        answer, listener = self._answers.get(key) or self._begin(key)
        self._answers.move_to_end(key)
        if step.finish_reason:
            del self._answers[key]
            if is_engine_failure(step.finish_reason):
                return error_response_of_text(step.finish_reason)
        elif listener.has_left(request):  # Triton tells this step, and no other
            answer.stop_engine()
        tensors = answer.push(step)
        return pb_utils.InferenceResponse(tensors) if tensors else None

    def _begin(self, key: tuple[str, int]) -> tuple[RunningAnswer, Listener]:
        text, sequence = key
        settings = AnswerSettings.from_json(text)
        stop = partial(stop_engine, settings.sequence_id(sequence))
        begun = self._answers[key] = RunningAnswer(self._tokenizer, settings, stop), Listener()
        if len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)
        return begun
