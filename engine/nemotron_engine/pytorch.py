"""The engine of the PyTorch lane: TensorRT-LLM's `LLM` API, 1.3 and later.

On one node the library starts a process for each GPU by itself. Over several, `nemotron serve` runs
under its `trtllm-llmapi-launch`, which keeps the other ranks waiting for the first.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nemotron_convert.errors import NemotronError
from nemotron_engine.admission import Admission
from nemotron_engine.engine import EngineState, OnChunk
from nemotron_engine.request import GenerationChunk, GenerationRequest, TimedOut
from nemotron_engine.settings import PyTorchEngineSettings

NO_TELEMETRY = "TRTLLM_NO_USAGE_STATS"
FINISH_REASONS = {"stop": "stop", "length": "length"}


class PyTorchEngine:
    """See `Engine`. Requests live in one event loop, whose thread calls `on_chunk`."""

    def __init__(self, folder: Path) -> None:
        os.environ[NO_TELEMETRY] = "1"  # read when the library is imported
        import tensorrt_llm  # noqa: PLC0415

        self._api = tensorrt_llm
        self._settings = PyTorchEngineSettings.read(folder)
        self._llm = tensorrt_llm.LLM(**_llm_arguments(folder, self._settings))
        self._admission = Admission(self._settings)
        self._tasks: dict[str, asyncio.Task[GenerationChunk]] = {}
        self._steps = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    def submit_all(self, requests: Sequence[tuple[GenerationRequest, OnChunk]]) -> None:
        """See `Engine`."""
        self._admission.admit([request for request, _ in requests])
        now = time.monotonic()
        for request, on_chunk in requests:
            seconds = min(request.seconds or math.inf, self._settings.request_seconds)
            self._loop.call_soon_threadsafe(self._start, request, on_chunk, now + seconds)

    def cancel(self, request_id: str) -> bool:
        """See `Engine`."""
        known = self._admission.has(request_id)
        if known:
            self._loop.call_soon_threadsafe(self._cancel, request_id)
        return known

    def state(self) -> EngineState:
        """See `Engine`. The library counts no steps; these are pieces of answers."""
        return EngineState(self._steps, self._admission.waiting, None)

    def close(self) -> None:
        """See `Engine`."""
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._llm.shutdown()

    def _start(self, request: GenerationRequest, on_chunk: OnChunk, deadline: float) -> None:
        task = self._loop.create_task(self._stream(request, on_chunk, deadline))
        self._tasks[request.request_id] = task
        task.add_done_callback(partial(self._end, request.request_id, on_chunk))

    def _end(self, name: str, on_chunk: OnChunk, task: asyncio.Task[GenerationChunk]) -> None:
        del self._tasks[name]
        self._admission.leave(name)
        if task.cancelled():
            on_chunk(GenerationChunk((), finish_reason="cancelled"))
        elif (error := task.exception()) is None:
            on_chunk(task.result())
        elif isinstance(error, asyncio.TimeoutError):
            on_chunk(TimedOut("the answer was not whole in the time allowed"))
        elif isinstance(error, self._api.llmapi.RequestError):
            on_chunk(NemotronError(f"the engine refuses the request: {error}"))
        else:  # whatever else it raises, its workers have not survived
            self._admission.refuse_all(str(error))
            on_chunk(NemotronError(f"the engine is dead: {error}", where=name))

    def _cancel(self, request_id: str) -> None:
        if (task := self._tasks.get(request_id)) is not None:
            task.cancel()

    async def _cancel_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _stream(
        self, request: GenerationRequest, on_chunk: OnChunk, deadline: float
    ) -> GenerationChunk:
        """The last chunk, after the others have gone out."""
        scheduled_ns = time.time_ns()
        params = _sampling_params(self._api, request)
        result = self._llm.generate_async(list(request.input_ids), params, streaming=True)
        outputs = result.__aiter__()
        try:
            while True:
                step = await asyncio.wait_for(outputs.__anext__(), deadline - time.monotonic())
                self._steps += 1
                output = step.outputs[0]
                ids = tuple(output.token_ids_diff)
                log_probs = _log_probs(output, ids) if request.log_probs else ()
                if not step.finished:
                    on_chunk(GenerationChunk(ids, log_probs, None, scheduled_ns))
                    continue
                reason = FINISH_REASONS.get(output.finish_reason, "cancelled")
                return GenerationChunk(ids, log_probs, reason, scheduled_ns)
        except (asyncio.CancelledError, asyncio.TimeoutError):
            result.abort()
            raise


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
        "seed": request.seed,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "logprobs": 1 if request.log_probs else None,
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
        import torch  # noqa: PLC0415  # TensorRT-LLM brings it

        fields["embedding_bias"] = torch.tensor(request.embedding_bias, dtype=torch.float32)
    if request.guide_type is not None:
        fields["guided_decoding"] = _guide(api, request.guide_type, request.guide)
    return api.SamplingParams(**fields)


def _guide(api: Any, kind: str, guide: str | None) -> Any:
    if kind == "json":
        return api.llmapi.GuidedDecodingParams(json_object=True)
    field = {"json_schema": "json", "ebnf_grammar": "grammar"}.get(kind, kind)
    return api.llmapi.GuidedDecodingParams(**{field: guide})


def _log_probs(output: Any, ids: tuple[int, ...]) -> tuple[float, ...]:
    """Of the tokens themselves; the library gives a table of token → log-probability for each."""
    tables = output.logprobs_diff
    return tuple(table[id_].logprob for id_, table in zip(ids, tables, strict=False))
