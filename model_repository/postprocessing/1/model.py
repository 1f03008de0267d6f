"""Tokens in, text out: one running answer per request, in the engine's order."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_convert.errors import NemotronError
from nemotron_engine.triton import parameter, refusal, required, tensor, value, values
from nemotron_text import AnswerSettings, AnswerStream, Tokenizer

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
MAX_ANSWERS = 16384
"""More than ever run at once. Only an engine that fails in the middle leaves an answer behind; past
this many, the one that was silent for longest goes."""


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._tokenizer = Tokenizer(Path(parameter(args, "tokenizer_path")))
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                tensors = self._push(request)
            except NemotronError as error:
                sender.send(refusal(error), flags=FINAL)
                continue
            if tensors:
                sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL)
            else:
                sender.send(flags=FINAL)

    def _push(self, request: Any) -> list[Any]:
        key = required(request, "answer_settings")
        answer = self._answers.get(key)
        if answer is None:
            answer = self._answers[key] = _Answer(self._tokenizer, AnswerSettings.from_json(key))
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
        self._answers.move_to_end(key)
        finish_reason = required(request, "finish_reason")
        if finish_reason:
            del self._answers[key]
        elif request.is_cancelled():  # Triton tells this step, and no other, that nobody listens
            answer.stop_engine()
        return answer.push(request, finish_reason)


class _Answer:
    def __init__(self, tokenizer: Tokenizer, settings: AnswerSettings) -> None:
        self._settings = settings
        self._text = AnswerStream(
            tokenizer,
            chat=settings.chat,
            end_ids=settings.end_ids,
            stop_strings=settings.stop_strings,
        )
        self._finished = False
        self._engine_stopped = False
        self._unsent_text = ""
        self._unsent_ids: list[int] = []
        self._unsent_log_probs: list[float] = []
        self._num_tokens = 0

    def push(self, request: Any, finish_reason: str) -> list[Any]:
        """The outputs to send now; none while a character is incomplete or the answer is whole."""
        if self._finished:  # tokens that the engine made before it heard of the stop
            return []
        ids = values(request, "output_ids") or []
        text = self._text.push(ids, finish_reason)
        self._num_tokens += len(ids)
        self._unsent_text += text
        self._unsent_ids += ids
        self._unsent_log_probs += values(request, "output_log_probs") or []
        if self._text.stop_reason is not None:
            if not finish_reason:
                self.stop_engine()
            finish_reason = "stop"
        self._finished = bool(finish_reason)
        if not self._finished and not (self._settings.stream and self._unsent_text):
            return []
        outputs = self._outputs(finish_reason, value(request, "cum_log_probs"))
        self._unsent_text, self._unsent_ids, self._unsent_log_probs = "", [], []
        return outputs

    def stop_engine(self) -> None:
        """Free the engine's slot, once: the text is complete, or nobody wants it."""
        if not self._engine_stopped:
            self._engine_stopped = True
            _stop_engine(self._settings.stream_id)

    def _outputs(self, finish_reason: str, cum_log_prob: float | None) -> list[Any]:
        outputs = [
            tensor("text_output", [self._unsent_text], np.object_),
            tensor("output_token_ids", self._unsent_ids, np.int32),
            tensor("finish_reason", [finish_reason], np.object_),
            tensor("stop_reason", [self._text.stop_reason or ""], np.object_),
            tensor("num_input_tokens", [self._settings.num_input_tokens], np.int32),
            tensor("num_output_tokens", [self._num_tokens], np.int32),
        ]
        if cum_log_prob is not None:
            outputs.append(tensor("output_log_probs", [self._unsent_log_probs], np.float32))
            outputs.append(tensor("cum_log_probs", [cum_log_prob], np.float32))
        return outputs


def _stop_engine(stream_id: str) -> None:
    one = np.ones((1, 1), np.int32)
    stop = pb_utils.InferenceRequest(
        model_name="tensorrt_llm",
        request_id=stream_id,
        requested_output_names=[],
        inputs=[
            pb_utils.Tensor("stop", np.array([[True]])),
            *(
                pb_utils.Tensor(n, one)
                for n in ("input_ids", "input_lengths", "request_output_len")
            ),
        ],
    )
    for _response in stop.exec(decoupled=True):
        pass
