"""The model `tensorrt_llm`, tokens to tokens, on the lanes whose engine is Python."""

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
from nemotron_engine.adapters import open_engine
from nemotron_engine.cancellation import CancellationPoll
from nemotron_engine.meter import FLUSH_SECONDS, Meter, Timer
from nemotron_engine.request import GenerationChunk, GenerationRequest
from nemotron_engine.triton import (
    engine_failure_text,
    error_response,
    error_response_of_text,
    parameter,
    refuse_unsupported,
    required,
    tensor,
    value,
    values,
)
from nemotron_engine.watchdog import start_watchdog

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
MAX_SEQUENCES = 64


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        start_watchdog()
        self._lane = cast(Lane, parameter(args, "lane"))
        self._engine = open_engine(self._lane, Path(parameter(args, "gpt_model_path")))
        # Ids by which a client may stop requests → the engine's ids. Clients may use equal ids.
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
        gc.collect()  # Triton's objects must not outlive the model: their destructors would crash

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

    def _stop(self, stop_id: str) -> None:
        with self._lock:
            engine_ids = list(self._running.get(stop_id, ()))
        for engine_id in engine_ids:
            self._engine.cancel(engine_id)

    def _start(self, request: Any, sender: Any) -> None:
        generation = _generation(request, self._lane)
        count = _sequences(request)
        group = _Group(
            sender,
            count,
            streaming=value(request, "streaming", default=False),
            times=value(request, "return_perf_metrics", default=False),
            # Triton cannot combine a stream's second response with tensors from before the stream,
            # so the engine passes on what postprocessing needs.
            answer_settings=value(request, "answer_settings", default=""),
        )
        stream_id = value(request, "stream_id", default="")
        submissions = []
        releases: list[Callable[[], None]] = []
        for number in range(count):
            seed = ((generation.seed or 0) + number) % (MAX_SEED + 1)
            sequence = replace(generation, request_id=uuid.uuid4().hex, seed=seed)
            sequence_id = f"{stream_id}/{number}" if stream_id else ""
            stop_ids = {id_ for id_ in (request.request_id(), stream_id, sequence_id) if id_}
            releases.append(self._register(sequence.request_id, stop_ids))
            answer = _Answer(
                group,
                number,
                log_probs=sequence.log_probs,
                release=releases[-1],
                cancel=partial(self._engine.cancel, sequence.request_id),
                timer=Timer(self._meter),
            )
            submissions.append((sequence, answer.push))
        try:
            self._engine.submit_all(submissions)
        except NemotronError:
            for release in releases:
                release()
            raise
        self._meter.add(PROMPT_TOKENS_METRIC, len(generation.input_ids))

    def _register(self, engine_id: str, stop_ids: set[str]) -> Callable[[], None]:
        """Count a running sequence that these ids stop. Return the function that unregisters it."""
        with self._lock:
            for stop_id in stop_ids:
                self._running[stop_id].add(engine_id)
            self._count += 1
            self._meter.running(self._count)

        def unregister() -> None:
            with self._lock:
                for stop_id in stop_ids:
                    self._running[stop_id].discard(engine_id)
                    if not self._running[stop_id]:
                        del self._running[stop_id]
                self._count -= 1
                self._meter.running(self._count)

        return unregister


@dataclass
class _Group:
    """The sequences of one request, which have one response sender and are pushed by one thread."""

    sender: Any
    remaining: int
    """Number of sequences that have not ended."""
    streaming: bool
    times: bool
    """Whether the last response of each sequence has its times."""
    answer_settings: str
    """Passed on in each response; empty if the client is not the ensemble."""
    arrival_ns: int = field(default_factory=time.time_ns)

    def flags(self) -> int:
        """Count the end of a sequence. Return the flags of its last response."""
        self.remaining -= 1
        return 0 if self.remaining else int(FINAL)


class _Answer:
    """Sends one sequence's chunks as they come, or all at the end. Used by one thread only."""

    def __init__(
        self,
        group: _Group,
        sequence: int,
        *,
        log_probs: bool,
        release: Callable[[], None],
        cancel: Callable[[], object],
        timer: Timer,
    ) -> None:
        self._group = group
        self._sequence = sequence
        self._with_log_probs = log_probs
        self._release = release
        self._cancel = cancel
        self._timer = timer
        self._cancellation = CancellationPoll()
        self._ids: tuple[int, ...] = ()
        self._log_probs: tuple[float, ...] = ()
        self._cum_log_prob = 0.0
        self._first_token_ns = 0

    def push(self, chunk: GenerationChunk | NemotronError) -> None:
        sender = self._group.sender
        if isinstance(chunk, NemotronError):
            self._release()
            # An error in the middle of a stream does not reach BLS, so a sender of answer settings
            # gets the error in place of the finish reason.
            text = engine_failure_text(chunk)
            settings = self._group.answer_settings
            response = self._response(text) if settings else error_response_of_text(text)
            sender.send(response, flags=self._group.flags())
            return
        if chunk.token_ids:
            self._timer.tokens(len(chunk.token_ids))
            self._first_token_ns = self._first_token_ns or time.time_ns()
        self._ids += chunk.token_ids
        self._log_probs += chunk.log_probs
        self._cum_log_prob += sum(chunk.log_probs)
        if chunk.finish_reason is not None:
            self._release()
            response = self._response(chunk.finish_reason, chunk.scheduled_ns)
            sender.send(response, flags=self._group.flags())
            return
        if self._cancellation.is_cancelled(sender):
            self._cancel()
            return
        if self._group.streaming:
            sender.send(self._response(""))
            self._ids, self._log_probs = (), ()

    def _response(self, finish_reason: str, scheduled_ns: int = 0) -> Any:
        settings = self._group.answer_settings
        tensors = [tensor("output_ids", [self._ids])]
        if settings:
            tensors.append(tensor("answer_settings", [settings]))
        # Each tensor costs time, and `read_step` knows the defaults of tensors that are left out.
        if not settings or finish_reason:
            tensors.append(tensor("finish_reason", [finish_reason]))
        if not settings or self._sequence:
            tensors.append(tensor("sequence_index", [self._sequence]))
        if not settings:
            tensors.append(tensor("sequence_length", [len(self._ids)]))
        if self._with_log_probs:
            tensors.append(tensor("output_log_probs", [self._log_probs]))
            tensors.append(tensor("cum_log_probs", [self._cum_log_prob]))
        if finish_reason and self._group.times:
            now = time.time_ns()
            times = {
                "arrival_time_ns": self._group.arrival_ns,
                "first_scheduled_time_ns": scheduled_ns or now,
                "first_token_time_ns": self._first_token_ns or now,
                "last_token_time_ns": now,
            }
            tensors += [tensor(name, [time_ns]) for name, time_ns in times.items()]
        return pb_utils.InferenceResponse(tensors)


def _sequences(request: Any) -> int:
    count: int = value(request, "num_return_sequences", default=1)
    if not 1 <= count <= MAX_SEQUENCES:
        raise NemotronError(f"num_return_sequences is {count}", remedy=f"use 1 to {MAX_SEQUENCES}")
    return count


def _generation(request: Any, lane: Lane) -> GenerationRequest:
    refuse_unsupported(request, ENGINE_INPUTS, lane)
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
    """Return the end ids of the classic `stop_words_list`.

    Raises `NemotronError` if a sequence has several tokens, which this engine does not support.
    """
    ids_and_ends = pb_utils.get_input_tensor_by_name(request, "stop_words_list")
    if ids_and_ends is None:
        return ()
    ids, end_positions = ids_and_ends.as_numpy().reshape(2, -1).tolist()
    end_positions = [position for position in end_positions if position > 0]
    if end_positions != list(range(1, len(end_positions) + 1)):
        raise NemotronError(
            "stop sequences of more than one token are not on this engine",
            where="stop_words_list",
            remedy="send stop_words to the model ensemble, which matches them on the text",
        )
    return tuple(ids[: len(end_positions)])
