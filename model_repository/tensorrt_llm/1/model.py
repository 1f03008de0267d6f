"""The engine, tokens in and tokens out: the CPU lane's stand-in for the TensorRT-LLM backend."""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_convert.errors import NemotronError
from nemotron_engine.cpu import CpuEngine
from nemotron_engine.metrics import RUNNING_METRIC
from nemotron_engine.request import GenerationChunk, GenerationRequest
from nemotron_engine.triton import (
    Gauge,
    fault,
    parameter,
    refusal,
    refuse_parameters,
    required,
    tensor,
    value,
    values,
)

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._engine = CpuEngine(Path(parameter(args, "gpt_model_path")))
        # Names a client may stop a request by → the engine's ids; clients may share a name.
        self._running: defaultdict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()
        self._count = 0
        self._gauge = Gauge(RUNNING_METRIC, "Requests that the engine has and has not finished")

    def finalize(self) -> None:
        self._engine.close()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                if value(request, "stop", default=False):
                    self._stop(request.request_id())
                    sender.send(flags=FINAL)
                else:
                    self._start(request, sender)
            except NemotronError as error:
                sender.send(refusal(error), flags=FINAL)

    def _stop(self, name: str) -> None:
        with self._lock:
            ids = list(self._running.get(name, ()))
        for id_ in ids:
            self._engine.cancel(id_)

    def _start(self, request: Any, sender: Any) -> None:
        generation = _generation(request)
        id_ = generation.request_id
        names = {name for name in (request.request_id(), value(request, "stream_id")) if name}
        with self._lock:
            for name in names:
                self._running[name].add(id_)
            self._count += 1
            self._gauge.set(self._count)

        def ended() -> None:
            with self._lock:
                for name in names:
                    self._running[name].discard(id_)
                    if not self._running[name]:
                        del self._running[name]
                self._count -= 1
                self._gauge.set(self._count)

        answer = _Answer(
            sender,
            streaming=value(request, "streaming", default=False),
            log_probs=generation.log_probs,
            # Triton lets no step mix a stream's second response with what came before the stream,
            # so the engine hands on what postprocessing has to know.
            echo=value(request, "answer_settings", default=""),
            ended=ended,
            cancel=lambda: self._engine.cancel(id_),
        )
        try:
            self._engine.submit(generation, answer.push)
        except NemotronError:
            ended()
            raise


class _Answer:
    """Sends one request's chunks, each as it comes or all at the end; called by one thread."""

    def __init__(
        self,
        sender: Any,
        *,
        streaming: bool,
        log_probs: bool,
        echo: str,
        ended: Callable[[], None],
        cancel: Callable[[], object],
    ) -> None:
        self._sender = sender
        self._streaming = streaming
        self._with_log_probs = log_probs
        self._echo = echo
        self._ended = ended
        self._cancel = cancel
        self._ids: tuple[int, ...] = ()
        self._log_probs: tuple[float, ...] = ()
        self._cum_log_prob = 0.0

    def push(self, chunk: GenerationChunk | NemotronError) -> None:
        if isinstance(chunk, NemotronError):
            self._ended()
            self._sender.send(fault(chunk), flags=FINAL)
            return
        if chunk.finish_reason is None and self._sender.is_cancelled():
            self._cancel()
            return
        self._ids += chunk.token_ids
        self._log_probs += chunk.log_probs
        self._cum_log_prob += sum(chunk.log_probs)
        if chunk.finish_reason is not None:
            self._ended()
            self._sender.send(self._response(chunk.finish_reason), flags=FINAL)
        elif self._streaming:
            self._sender.send(self._response(""))
            self._ids, self._log_probs = (), ()

    def _response(self, finish_reason: str) -> Any:
        tensors = [
            tensor("output_ids", [self._ids], np.int32),
            tensor("sequence_length", [len(self._ids)], np.int32),
            tensor("finish_reason", [finish_reason], np.object_),
            tensor("answer_settings", [self._echo], np.object_),
        ]
        if self._with_log_probs:
            tensors.append(tensor("output_log_probs", [self._log_probs], np.float32))
            tensors.append(tensor("cum_log_probs", [self._cum_log_prob], np.float32))
        return pb_utils.InferenceResponse(tensors)


def _generation(request: Any) -> GenerationRequest:
    refuse_parameters(request)
    input_ids = tuple(values(request, "input_ids") or ())
    if (length := required(request, "input_lengths")) != len(input_ids):
        raise NemotronError(
            f"input_lengths is {length}, but there are {len(input_ids)} input_ids",
            remedy="send the prompt without padding",
        )
    end_id = value(request, "end_id")
    return GenerationRequest(
        request_id=uuid.uuid4().hex,
        input_ids=input_ids,
        max_tokens=required(request, "request_output_len"),
        end_ids=(() if end_id is None else (end_id,)) + _one_token_stops(request),
        temperature=value(request, "temperature"),
        top_k=value(request, "runtime_top_k"),
        top_p=value(request, "runtime_top_p"),
        repetition_penalty=value(request, "repetition_penalty"),
        presence_penalty=value(request, "presence_penalty"),
        frequency_penalty=value(request, "frequency_penalty"),
        min_tokens=value(request, "min_tokens"),
        seed=value(request, "seed"),
        log_probs=value(request, "return_log_probs", default=False),
    )


def _one_token_stops(request: Any) -> tuple[int, ...]:
    """End ids from the classic `stop_words_list`; this engine has no longer sequences."""
    both = pb_utils.get_input_tensor_by_name(request, "stop_words_list")
    if both is None:
        return ()
    ids, ends = both.as_numpy().reshape(2, -1).tolist()
    ends = [end for end in ends if end > 0]
    if ends != list(range(1, len(ends) + 1)):
        raise NemotronError(
            "stop sequences of more than one token are not on this engine",
            where="stop_words_list",
            remedy="send stop_words to the model ensemble, which matches them on the text",
        )
    return tuple(ids[: len(ends)])
