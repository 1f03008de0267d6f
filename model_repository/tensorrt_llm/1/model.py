"""The engine, tokens in and tokens out, where it is not TensorRT-LLM's C++ backend."""

from __future__ import annotations

import gc
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_core.errors import NemotronError
from nemotron_core.generation import MAX_SEED
from nemotron_core.metrics import (
    KV_CACHE_USAGE_METRIC,
    PROMPT_TOKENS_METRIC,
    STEPS_METRIC,
    WAITING_METRIC,
)
from nemotron_core.wire import ENGINE_INPUTS, Lane
from nemotron_engine.cancellation import Listener
from nemotron_engine.engine import open_engine
from nemotron_engine.meter import FLUSH_SECONDS, Meter, Timer
from nemotron_engine.request import GenerationChunk, GenerationRequest
from nemotron_engine.triton import (
    engine_failure_text,
    error_response,
    error_response_of_text,
    parameter,
    refuse_parameters,
    required,
    tensor,
    value,
    values,
)

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
MAX_SEQUENCES = 64


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._lane = cast(Lane, parameter(args, "lane"))
        self._engine = open_engine(self._lane, Path(parameter(args, "gpt_model_path")))
        # Names a client may stop a request by → the engine's ids; clients may share a name.
        self._running: defaultdict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()
        self._count = 0
        self._meter = Meter()
        self._ended = threading.Event()
        self._flusher = threading.Thread(target=self._flush, name="metrics", daemon=True)
        self._flusher.start()

    def finalize(self) -> None:
        self._ended.set()
        self._flusher.join()
        self._engine.close()
        self._meter.close()
        gc.collect()  # Triton's objects must not outlive the model: their end would crash it

    def _flush(self) -> None:
        steps = 0
        while not self._ended.wait(FLUSH_SECONDS):
            state = self._engine.state()
            self._meter.add(STEPS_METRIC, state.steps - steps)
            steps = state.steps
            gauges: dict[str, float] = {WAITING_METRIC: state.waiting}
            if state.kv_cache_usage is not None:
                gauges[KV_CACHE_USAGE_METRIC] = state.kv_cache_usage
            self._meter.flush(gauges)

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
                sender.send(error_response(error), flags=FINAL)

    def _stop(self, name: str) -> None:
        with self._lock:
            ids = list(self._running.get(name, ()))
        for id_ in ids:
            self._engine.cancel(id_)

    def _start(self, request: Any, sender: Any) -> None:
        generation = _generation(request, self._lane)
        count = _sequences(request)
        group = _Group(
            sender,
            count,
            streaming=value(request, "streaming", default=False),
            times=value(request, "return_perf_metrics", default=False),
            # Triton lets no step mix a stream's second response with what came before the stream,
            # so the engine hands on what postprocessing has to know.
            echo=value(request, "answer_settings", default=""),
        )
        stream_id = value(request, "stream_id", default="")
        parts = []
        ended: list[Callable[[], None]] = []
        for number in range(count):
            seed = ((generation.seed or 0) + number) % (MAX_SEED + 1)
            one = replace(generation, request_id=uuid.uuid4().hex, seed=seed)
            own = f"{stream_id}/{number}" if stream_id else ""
            names = {name for name in (request.request_id(), stream_id, own) if name}
            ended.append(self._note(one.request_id, names))
            answer = _Answer(
                group,
                number,
                log_probs=one.log_probs,
                ended=ended[-1],
                cancel=partial(self._engine.cancel, one.request_id),
                timer=Timer(self._meter),
            )
            parts.append((one, answer.push))
        try:
            self._engine.submit_all(parts)
        except NemotronError:
            for end in ended:
                end()
            raise
        self._meter.add(PROMPT_TOKENS_METRIC, len(generation.input_ids))

    def _note(self, id_: str, names: set[str]) -> Callable[[], None]:
        """From now on these names stop the request; the result ends that."""
        with self._lock:
            for name in names:
                self._running[name].add(id_)
            self._count += 1
            self._meter.running(self._count)

        def ended() -> None:
            with self._lock:
                for name in names:
                    self._running[name].discard(id_)
                    if not self._running[name]:
                        del self._running[name]
                self._count -= 1
                self._meter.running(self._count)

        return ended


@dataclass
class _Group:
    """The sequences of one request, which have one sender; all are stepped by one thread."""

    sender: Any
    left: int
    streaming: bool
    times: bool
    echo: str
    arrival_ns: int = field(default_factory=time.time_ns)

    def flags(self) -> int:
        """Of the last response of a sequence."""
        self.left -= 1
        return 0 if self.left else int(FINAL)


class _Answer:
    """Sends one sequence's chunks, each as it comes or all at the end; called by one thread."""

    def __init__(
        self,
        group: _Group,
        sequence: int,
        *,
        log_probs: bool,
        ended: Callable[[], None],
        cancel: Callable[[], object],
        timer: Timer,
    ) -> None:
        self._group = group
        self._sequence = sequence
        self._with_log_probs = log_probs
        self._ended = ended
        self._cancel = cancel
        self._timer = timer
        self._listener = Listener()
        self._ids: tuple[int, ...] = ()
        self._log_probs: tuple[float, ...] = ()
        self._cum_log_prob = 0.0
        self._first_token_ns = 0

    def push(self, chunk: GenerationChunk | NemotronError) -> None:
        sender = self._group.sender
        if isinstance(chunk, NemotronError):
            self._ended()
            # Of an error in the middle of a stream BLS sees nothing, so who has sent settings for
            # the answer is told in place of the reason.
            text = engine_failure_text(chunk)
            response = self._response(text) if self._group.echo else error_response_of_text(text)
            sender.send(response, flags=self._group.flags())
            return
        if chunk.token_ids:
            self._timer.tokens(len(chunk.token_ids))
            self._first_token_ns = self._first_token_ns or time.time_ns()
        self._ids += chunk.token_ids
        self._log_probs += chunk.log_probs
        self._cum_log_prob += sum(chunk.log_probs)
        if chunk.finish_reason is not None:
            self._ended()
            response = self._response(chunk.finish_reason, chunk.scheduled_ns)
            sender.send(response, flags=self._group.flags())
            return
        if self._listener.has_left(sender):
            self._cancel()
            return
        if self._group.streaming:
            sender.send(self._response(""))
            self._ids, self._log_probs = (), ()

    def _response(self, finish_reason: str, scheduled_ns: int = 0) -> Any:
        echo = self._group.echo
        tensors = [tensor("output_ids", [self._ids], np.int32)]
        if echo:
            tensors.append(tensor("answer_settings", [echo], np.object_))
        # Each tensor takes its time, and `read_step` knows what one that is not there would say.
        if not echo or finish_reason:
            tensors.append(tensor("finish_reason", [finish_reason], np.object_))
        if not echo or self._sequence:
            tensors.append(tensor("sequence_index", [self._sequence], np.int32))
        if not echo:
            tensors.append(tensor("sequence_length", [len(self._ids)], np.int32))
        if self._with_log_probs:
            tensors.append(tensor("output_log_probs", [self._log_probs], np.float32))
            tensors.append(tensor("cum_log_probs", [self._cum_log_prob], np.float32))
        if finish_reason and self._group.times:
            now = time.time_ns()
            times = {
                "arrival_time_ns": self._group.arrival_ns,
                "first_scheduled_time_ns": scheduled_ns or now,
                "first_token_time_ns": self._first_token_ns or now,
                "last_token_time_ns": now,
            }
            tensors += [tensor(name, [time_ns], np.int64) for name, time_ns in times.items()]
        return pb_utils.InferenceResponse(tensors)


def _sequences(request: Any) -> int:
    count: int = value(request, "num_return_sequences", default=1)
    if not 1 <= count <= MAX_SEQUENCES:
        raise NemotronError(f"num_return_sequences is {count}", remedy=f"use 1 to {MAX_SEQUENCES}")
    return count


def _generation(request: Any, lane: Lane) -> GenerationRequest:
    refuse_parameters(request)
    for one in ENGINE_INPUTS:
        if lane not in one.lanes and (sent := values(request, one.name)) is not None:
            one.refuse(lane, sent)
    input_ids = tuple(values(request, "input_ids") or ())
    if (length := required(request, "input_lengths")) != len(input_ids):
        raise NemotronError(
            f"input_lengths is {length}, but there are {len(input_ids)} input_ids",
            remedy="send the prompt without padding",
        )
    end_id = value(request, "end_id")
    bias = values(request, "embedding_bias")
    return GenerationRequest(
        request_id="",
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
        embedding_bias=tuple(bias) if bias is not None else None,
        guide_type=value(request, "guided_decoding_guide_type") or None,
        guide=value(request, "guided_decoding_guide"),
        seconds=request.timeout() / 1e6 or None,
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
