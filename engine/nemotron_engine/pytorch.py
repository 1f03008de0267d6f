"""The engine of the PyTorch lane: TensorRT-LLM's `LLM` API, 1.3 and later.

On one node the library itself starts a process for each GPU. On several nodes, `nemotron serve`
runs under the library's `trtllm-llmapi-launch`, which makes the other ranks wait for rank 0.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nemotron_core.engine_settings import PyTorchEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_engine.admission import Admission
from nemotron_engine.engine import EngineState, OnChunk
from nemotron_engine.pace import Pace
from nemotron_engine.request import GenerationChunk, GenerationRequest, TimedOut

NO_TELEMETRY = "TRTLLM_NO_USAGE_STATS"
FINISH_REASONS = {"stop": "stop", "length": "length"}
CANCELLED = GenerationChunk((), finish_reason="cancelled")


@dataclass
class _Running:
    """A request that the library works on."""

    task: asyncio.Task[GenerationChunk]
    timer: asyncio.TimerHandle
    """Timer that stops the request at its deadline."""
    end: GenerationChunk | NemotronError = CANCELLED
    """Last chunk or error of the request if it is stopped."""


class PyTorchEngine:
    """See `Engine`. Requests run in one event loop, whose thread calls `on_chunk`."""

    def __init__(self, folder: Path) -> None:
        os.environ[NO_TELEMETRY] = "1"  # read when the library is imported
        import tensorrt_llm  # noqa: PLC0415

        self._api = tensorrt_llm
        self._settings = PyTorchEngineSettings.read(folder)
        self._llm = tensorrt_llm.LLM(**_llm_arguments(folder, self._settings))
        self._admission = Admission(self._settings)
        self._running: dict[str, _Running] = {}
        self._pace = Pace("pytorch")
        self._steps = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    def submit_all(self, requests: Sequence[tuple[GenerationRequest, OnChunk]]) -> None:
        """See `Engine`."""
        self._admission.admit([request for request, _ in requests])
        for request, on_chunk in requests:
            seconds = min(request.seconds or math.inf, self._settings.request_seconds)
            self._loop.call_soon_threadsafe(self._start, request, on_chunk, seconds)

    def cancel(self, request_id: str) -> bool:
        """See `Engine`."""
        known = self._admission.has(request_id)
        if known:
            self._loop.call_soon_threadsafe(self._stop, request_id)
        return known

    def state(self) -> EngineState:
        """See `Engine`. The library counts no steps; `steps` is the number of pieces of answers."""
        return EngineState(self._steps, self._admission.waiting, None)

    def close(self) -> None:
        """See `Engine`."""
        asyncio.run_coroutine_threadsafe(self._stop_all(), self._loop).result()
        self._llm.shutdown()  # its threads still call the loop
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, request: GenerationRequest, on_chunk: OnChunk, seconds: float) -> None:
        request_id = request.request_id
        task = self._loop.create_task(self._stream(request, on_chunk))
        late = TimedOut("the answer was not whole in the time allowed")
        timer = self._loop.call_later(seconds, self._stop, request_id, late)
        self._running[request_id] = _Running(task, timer)
        task.add_done_callback(partial(self._end, request_id, on_chunk))

    def _end(self, request_id: str, on_chunk: OnChunk, task: asyncio.Task[GenerationChunk]) -> None:
        running = self._running.pop(request_id)
        running.timer.cancel()
        self._admission.leave(request_id)
        if task.cancelled():
            on_chunk(running.end)
        elif (error := task.exception()) is None:
            on_chunk(task.result())
        elif isinstance(error, (self._api.llmapi.RequestError, ValueError)):
            on_chunk(NemotronError(f"the engine refuses the request: {error}"))
        else:  # any other exception means that the library's workers have died
            self._admission.refuse_all(str(error))
            on_chunk(NemotronError(f"the engine is dead: {error}", where=request_id))

    def _stop(self, request_id: str, end: NemotronError | None = None) -> None:
        if (running := self._running.get(request_id)) is not None:
            running.end = end or running.end
            running.task.cancel()

    async def _stop_all(self) -> None:
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _stream(self, request: GenerationRequest, on_chunk: OnChunk) -> GenerationChunk:
        """Send a request's chunks, and return the last one."""
        scheduled_ns = time.time_ns()
        ids: tuple[int, ...] = ()
        log_probs: tuple[float, ...] = ()
        burst = 0
        params = _sampling_params(self._api, request)
        result = self._llm.generate_async(list(request.input_ids), params, streaming=True)
        try:
            # No `wait_for` around each step: before Python 3.12 it loses a cancellation that comes
            # together with the step.
            async for step in result:
                self._steps += 1
                output = step.outputs[0]
                ids += (new := tuple(output.token_ids_diff))
                log_probs += _log_probs(output, new) if request.log_probs else ()
                if step.finished:
                    reason = FINISH_REASONS.get(output.finish_reason, "cancelled")
                    return GenerationChunk(ids, log_probs, reason, scheduled_ns)
                start = time.monotonic()
                if (current := self._pace.burst(start, len(self._running))) != burst:
                    burst = current
                    on_chunk(GenerationChunk(ids, log_probs, None, scheduled_ns))
                    ids, log_probs = (), ()
                    self._pace.record_cost(time.monotonic() - start)
        except asyncio.CancelledError:
            result.abort()
            if ids:
                on_chunk(GenerationChunk(ids, log_probs, None, scheduled_ns))
            raise
        raise RuntimeError("an answer has ended without its last part")


def _llm_arguments(folder: Path, settings: PyTorchEngineSettings) -> dict[str, Any]:
    from tensorrt_llm.llmapi import KvCacheConfig  # noqa: PLC0415

    return {
        "model": str(folder),
        "trust_remote_code": False,
        "tensor_parallel_size": settings.tp,
        "pipeline_parallel_size": settings.pp,
        "gpus_per_node": settings.gpus_per_node,
        "max_batch_size": settings.max_batch_size,
        "max_num_tokens": settings.max_num_tokens,
        "max_seq_len": settings.max_seq_len,
        "enable_chunked_prefill": True,
        "guided_decoding_backend": "xgrammar",
        "kv_cache_config": KvCacheConfig(
            enable_block_reuse=True,
            free_gpu_memory_fraction=settings.kv_cache_share,
            dtype="fp8" if settings.kv_cache_dtype == "fp8" else "auto",
        ),
    }


def _sampling_params(api: Any, request: GenerationRequest) -> Any:
    end_id, *stop_ids = request.end_ids or (None,)
    fields: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "min_tokens": request.min_tokens,
        "end_id": end_id,
        "pad_id": end_id,
        "ignore_eos": end_id is None,
        "stop_token_ids": stop_ids or None,
        "include_stop_str_in_output": True,  # keeps tokens that were counted
        "seed": request.seed,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "logprobs": 0 if request.log_probs else None,  # only of the token itself
        "detokenize": False,
        "add_special_tokens": False,
    }
    if request.samples:
        fields |= {
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "top_k": request.top_k or None,
            "top_p": request.top_p or 1.0,
        }
    else:
        fields["top_k"] = 1
    if request.embedding_bias is not None:
        import torch  # noqa: PLC0415  # installed with TensorRT-LLM

        fields["embedding_bias"] = torch.tensor(request.embedding_bias, dtype=torch.float32)
    if request.guide_type is not None:
        fields["guided_decoding"] = _guide(api, request.guide_type, request.guide)
    return api.SamplingParams(**fields)


def _guide(api: Any, guide_type: str, guide: str | None) -> Any:
    if guide_type == "json":
        return api.llmapi.GuidedDecodingParams(json_object=True)
    field = {"json_schema": "json", "ebnf_grammar": "grammar"}.get(guide_type, guide_type)
    return api.llmapi.GuidedDecodingParams(**{field: guide})


def _log_probs(output: Any, ids: tuple[int, ...]) -> tuple[float, ...]:
    """Return the tokens' own log-probabilities out of the library's table per token."""
    tables = output.logprobs_diff
    return tuple(table[id_].logprob for id_, table in zip(ids, tables, strict=False))
