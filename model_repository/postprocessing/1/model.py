"""Tokens in, text out: one running answer per request, in the engine's order."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_engine.metrics import OPEN_METRIC
from nemotron_engine.triton import Gauge, parameter, tensor
from nemotron_text import AnswerSettings, AnswerStream, Tokenizer

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
MAX_ANSWERS = 16384
"""More than ever run at once. Only an engine that fails in the middle leaves an answer behind; past
this many, the one that was silent for longest goes."""


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._tokenizer = Tokenizer(Path(parameter(args, "tokenizer_path")))
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()
        self._gauge = Gauge(OPEN_METRIC, "Answers of which text has come and more is to come")

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            settings = _raw(request, "answer_settings")
            answer = self._answers.get(settings)
            if answer is None:
                answer = _Answer(self._tokenizer, AnswerSettings.from_json(settings))
                self._answers[settings] = answer
                if len(self._answers) > MAX_ANSWERS:
                    self._answers.popitem(last=False)
            self._answers.move_to_end(settings)
            finish_reason = _raw(request, "finish_reason").decode()
            tensors = answer.push(request, finish_reason)
            if finish_reason:
                del self._answers[settings]
            self._gauge.set(len(self._answers))
            sender = request.get_response_sender()
            response = pb_utils.InferenceResponse(tensors) if tensors else None
            sender.send(response, flags=FINAL) if response else sender.send(flags=FINAL)


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
        self._unsent_text = ""
        self._unsent_ids: list[int] = []
        self._unsent_log_probs: list[float] = []
        self._num_tokens = 0

    def push(self, request: Any, finish_reason: str) -> list[Any]:
        """The outputs to send now; none while a character is incomplete or the answer is whole."""
        if self._finished:  # tokens that the engine made before it heard of the stop
            return []
        ids = _array(request, "output_ids").tolist()
        text = self._text.push(ids, finish_reason)
        self._num_tokens += len(ids)
        self._unsent_text += text
        self._unsent_ids += ids
        self._unsent_log_probs += _array(request, "output_log_probs").tolist()
        if self._text.stop_reason is not None:
            if not finish_reason:
                _stop_engine(self._settings.stream_id)
            finish_reason = "stop"
        self._finished = bool(finish_reason)
        if not self._finished and not (self._settings.stream and self._unsent_text):
            return []
        outputs = self._outputs(finish_reason, _array(request, "cum_log_probs"))
        self._unsent_text, self._unsent_ids, self._unsent_log_probs = "", [], []
        return outputs

    def _outputs(self, finish_reason: str, cum_log_probs: Any) -> list[Any]:
        return [
            tensor("text_output", [self._unsent_text], np.object_),
            tensor("output_token_ids", self._unsent_ids, np.int32),
            tensor("finish_reason", [finish_reason], np.object_),
            tensor("stop_reason", [self._text.stop_reason or ""], np.object_),
            tensor("num_input_tokens", [self._settings.num_input_tokens], np.int32),
            tensor("num_output_tokens", [self._num_tokens], np.int32),
            tensor("output_log_probs", [self._unsent_log_probs], np.float32),
            tensor("cum_log_probs", cum_log_probs, np.float32),
        ]


def _stop_engine(stream_id: str) -> None:
    """Frees the engine's slot: the text is complete, whatever tokens still come."""
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


def _array(request: Any, name: str) -> Any:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel()


def _raw(request: Any, name: str) -> bytes:
    data = _array(request, name)[0]
    return data if isinstance(data, bytes) else str(data).encode()
