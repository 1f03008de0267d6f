"""The model `postprocessing`: the engine's tokens to text, one running answer per sequence."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from nemotron_core.errors import NemotronError
from nemotron_core.text import AnswerSettings, Tokenizer
from nemotron_engine.cancellation import CancellationPoll
from nemotron_engine.inner_request import release_all
from nemotron_engine.running_answer import RunningAnswer, read_step, stop_engine
from nemotron_engine.triton import (
    error_response,
    error_response_of_text,
    is_engine_failure,
    parameter,
    required,
    values,
)
from nemotron_engine.watchdog import start_watchdog

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
Key = tuple[str, int]
"""A request's answer settings as JSON, and the index of the sequence."""
MAX_ANSWERS = 16384
"""Limit of the running answers, more than ever run at once. An answer is left behind only if the
engine fails in the middle; past the limit, the answer without tokens for longest is dropped."""


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        start_watchdog()
        self._tokenizer = Tokenizer(Path(parameter(args, "tokenizer_path")))
        self._answers: OrderedDict[Key, tuple[RunningAnswer, CancellationPoll]] = OrderedDict()

    def finalize(self) -> None:
        release_all()

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
        """Return the response to send, or `None`."""
        step = read_step(partial(values, request))
        key = required(request, "answer_settings"), step.sequence
        answer, cancellation = self._answers.get(key) or self._begin(key)
        self._answers.move_to_end(key)
        if step.finish_reason:
            del self._answers[key]
            if is_engine_failure(step.finish_reason):
                return error_response_of_text(step.finish_reason)
        elif cancellation.is_cancelled(request):  # only this step of the ensemble sees it
            answer.stop_engine()
        tensors = answer.push(step)
        return pb_utils.InferenceResponse(tensors) if tensors else None

    def _begin(self, key: Key) -> tuple[RunningAnswer, CancellationPoll]:
        text, sequence = key
        settings = AnswerSettings.from_json(text)
        stop = partial(stop_engine, settings.sequence_id(sequence))
        answer = RunningAnswer(self._tokenizer, settings, stop)
        entry = self._answers[key] = answer, CancellationPoll()
        if len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)
        return entry
