"""The engine of the CPU lane: openvino-genai's continuous batching behind one stepping thread."""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemotron_convert.errors import NemotronError
from nemotron_engine.admission import Admission
from nemotron_engine.engine import EngineState, OnChunk
from nemotron_engine.openvino import openvino, openvino_genai
from nemotron_engine.request import GenerationChunk, GenerationRequest, TimedOut
from nemotron_engine.settings import CpuEngineSettings

COMPILED_SHAPES = 512
"""OpenVINO keeps what it compiles for each new number of tokens in a step: 5000 times by default,
which takes memory for hours before it levels off."""
NO_ROOM = "the KV cache has no room for this request"
KV_BLOCK_TOKENS = 32
"""Tokens in one block of OpenVINO's paged KV cache on a CPU."""


@dataclass
class _Live:
    """A request that the pipeline works on."""

    request: GenerationRequest
    on_chunk: OnChunk
    deadline: float
    handle: Any = None
    scheduled_ns: int = 0


class CpuEngine:
    """See `Engine`. Only the stepping thread touches the pipeline."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings = CpuEngineSettings.read(folder)
        self._admission = Admission(self._settings)
        self._pipeline = self._load()
        self._inbox: queue.SimpleQueue[_Live | str | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._live: dict[str, _Live] = {}
        self._steps = 0
        self._kv_cache_usage = 0.0
        self._thread = threading.Thread(target=self._run, name="engine step", daemon=True)
        self._thread.start()

    @property
    def settings(self) -> CpuEngineSettings:
        return self._settings

    def submit(self, request: GenerationRequest, on_chunk: OnChunk) -> None:
        """Queue a request; see `submit_all`."""
        self.submit_all([(request, on_chunk)])

    def submit_all(self, requests: Sequence[tuple[GenerationRequest, OnChunk]]) -> None:
        """See `Engine`."""
        self._admission.admit([request for request, _ in requests])
        now = time.monotonic()
        for request, on_chunk in requests:
            seconds = min(request.seconds or math.inf, self._settings.request_seconds)
            self._inbox.put(_Live(request, on_chunk, now + seconds))

    def cancel(self, request_id: str) -> bool:
        """See `Engine`."""
        known = self._admission.has(request_id)
        if known:
            self._inbox.put(request_id)
        return known

    def state(self) -> EngineState:
        """See `Engine`."""
        return EngineState(self._steps, self._admission.waiting, self._kv_cache_usage)

    def close(self) -> None:
        """Stop stepping; requests that still run end as cancelled."""
        self._inbox.put(None)
        self._thread.join()

    def _load(self) -> Any:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = self._settings.max_batch_size
        scheduler.max_num_batched_tokens = self._settings.max_num_tokens
        scheduler.num_kv_blocks = -(-self._settings.kv_cache_tokens // KV_BLOCK_TOKENS)
        scheduler.enable_prefix_caching = True
        scheduler.dynamic_split_fuse = True
        precision = {"bf16": openvino.Type.bf16, "f32": openvino.Type.f32}[self._settings.dtype]
        return openvino_genai.ContinuousBatchingPipeline(
            self._folder,
            scheduler,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "KV_CACHE_PRECISION": precision,
                "CPU_RUNTIME_CACHE_CAPACITY": COMPILED_SHAPES,
            },
        )

    def _run(self) -> None:
        while self._take(wait=not self._live):
            try:
                now = time.time_ns()
                for live in self._live.values():
                    live.scheduled_ns = live.scheduled_ns or now
                self._pipeline.step()
                self._steps += 1
                self._kv_cache_usage = self._pipeline.get_metrics().cache_usage / 100  # per cent
                self._deliver()
            except Exception as error:  # nobody else would step
                self._rebuild(error)
        for live in list(self._live.values()):
            self._stop(live)
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()  # lets go of the stopped requests' KV blocks

    def _take(self, *, wait: bool) -> bool:
        """Take in all that was asked since the last step; False at the end."""
        while True:
            try:
                item = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if item is None:
                return False
            if isinstance(item, str):
                if (live := self._live.get(item)) is not None:
                    self._stop(live)
            else:
                self._start(item)
            wait = not self._live

    def _start(self, live: _Live) -> None:
        request = live.request
        self._live[request.request_id] = live
        ids = openvino.Tensor(np.array([request.input_ids], np.int64))
        try:
            config = _generation_config(request)
            live.handle = self._pipeline.add_request(next(self._numbers), ids, config)
        except RuntimeError as error:
            self._end(live, NemotronError(f"the engine refuses the request: {error}"))

    def _deliver(self) -> None:
        finished = {
            openvino_genai.GenerationFinishReason.STOP: "stop",
            openvino_genai.GenerationFinishReason.LENGTH: "length",
        }
        now = time.monotonic()
        for live in list(self._live.values()):
            if now > live.deadline:
                live.handle.stop()
                self._end(live, TimedOut("the answer was not whole in the time allowed"))
                continue
            while live.handle.can_read():
                if not (outputs := live.handle.read()):  # so ends what outgrows the whole cache
                    self._end(live, NemotronError(NO_ROOM))
                    break
                (output,) = outputs.values()
                log_probs = tuple(output.generated_log_probs) if live.request.log_probs else ()
                reason = finished.get(output.finish_reason)
                ids = tuple(output.generated_ids)
                chunk = GenerationChunk(ids, log_probs, reason, live.scheduled_ns)
                if reason is not None:
                    self._end(live, chunk)
                    break
                live.on_chunk(chunk)
            else:
                if live.handle.get_status() == openvino_genai.GenerationStatus.IGNORED:
                    self._end(live, NemotronError(NO_ROOM))

    def _stop(self, live: _Live) -> None:
        live.handle.stop()
        self._end(live, GenerationChunk((), finish_reason="cancelled"))

    def _end(self, live: _Live, last: GenerationChunk | NemotronError) -> None:
        del self._live[live.request.request_id]
        self._admission.leave(live.request.request_id)
        live.on_chunk(last)

    def _rebuild(self, error: Exception) -> None:
        """A pipeline that has thrown throws for ever: fail what runs, and start a new one."""
        for live in list(self._live.values()):
            name = live.request.request_id
            self._end(live, NemotronError(str(error), where=name))
        try:
            self._pipeline = self._load()
        except RuntimeError as fatal:
            self._admission.refuse_all(f"the engine failed and did not start again: {fatal}")


def _generation_config(request: GenerationRequest) -> Any:
    config = openvino_genai.GenerationConfig(
        max_new_tokens=request.max_tokens,
        min_new_tokens=request.min_tokens or 0,
        stop_token_ids=set(request.end_ids),
        do_sample=request.samples,
        logprobs=int(request.log_probs),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
    )
    # The library wants an id even where none ends the answer.
    config.set_eos_token_id(request.end_ids[0] if request.end_ids else 0)
    config.ignore_eos = not request.end_ids
    if request.samples:
        config.temperature = _or(request.temperature, 1.0)
        config.top_p = request.top_p or 1.0
        if request.top_k:
            config.top_k = request.top_k
        config.rng_seed = request.seed or 0
    return config


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
