"""The adapters of the GPU lanes: TensorRT-LLM's `LLM` API.

The library starts a process for each GPU itself. On several nodes this process runs under the
library's `trtllm-llmapi-launch`, whose other ranks wait for it.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from nemotron_core.engine_settings import (
    EngineSettings,
    PyTorchEngineSettings,
    TensorRTEngineSettings,
)
from nemotron_core.errors import NemotronError
from nemotron_engine.protocol import GUIDE_TYPES, Capabilities, Chunk, Request

LIBRARY = "tensorrt_llm"
NO_TELEMETRY = "TRTLLM_NO_USAGE_STATS"
FINISH_REASONS = {"stop": "stop", "length": "length"}
NO_END_ID = -1
"""Value of `end_id` for which no token is the end token."""
GUIDE_FIELDS = {"json_schema": "json", "ebnf_grammar": "grammar"}
"""Names that the library has for a guide; the others are the same."""


class _LlmAdapter(ABC):
    """See `Adapter`. Requests run in one event loop, in a thread of its own.

    Raises `NemotronError` if the folder is no engine of this lane, or cannot be loaded.
    """

    settings: EngineSettings
    log_probs_fields: ClassVar[dict[str, Any]]
    """Sampling parameters that ask for the log-probability of each token."""
    capabilities = Capabilities(features=["bias", "guides"], guide_types=list(GUIDE_TYPES))

    def __init__(self, folder: Path) -> None:
        os.environ[NO_TELEMETRY] = "1"  # read when the library is imported
        self._api: Any = importlib.import_module(LIBRARY)
        self._torch: Any = importlib.import_module("torch")  # comes with the library
        self.library = f"tensorrt-llm {self._api.__version__}"
        try:
            self._llm = self._load(folder)
        except (RuntimeError, ValueError) as error:
            raise NemotronError(
                str(error), where=folder, remedy="build the engine again"
            ) from error
        self.wake_file: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._pending: dict[bytes, Chunk] = {}
        """Chunks that `collect` has not returned yet, at most one for each request."""
        self._failure: BaseException | None = None
        """Error after which the library is lost."""
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    @abstractmethod
    def _load(self, folder: Path) -> Any:
        """Read the settings, and return the library's `LLM`."""

    def ask(self, request: Request) -> None:
        """See `Adapter`. What the library refuses ends with a chunk that has the error."""
        self._loop.call_soon_threadsafe(self._start, request)

    def cancel(self, key: bytes) -> None:
        """See `Adapter`."""
        self._loop.call_soon_threadsafe(self._stop, key)

    def collect(self) -> Iterable[Chunk]:
        """See `Adapter`."""
        assert self.wake_file is not None
        with suppress(BlockingIOError):
            os.eventfd_read(self.wake_file)
        with self._lock:
            chunks, self._pending = self._pending, {}
        if self._failure is not None:
            raise self._failure
        return chunks.values()

    def kv_cache_usage(self) -> float | None:
        """See `Adapter`. The library does not say."""
        return None

    def close(self) -> None:
        """See `Adapter`."""
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._llm.shutdown()  # its threads still call the loop
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, request: Request) -> None:
        task = self._loop.create_task(self._generate(request))
        self._tasks[request.key] = task
        task.add_done_callback(partial(self._end, request.key))

    def _stop(self, key: bytes) -> None:
        if (task := self._tasks.get(key)) is not None:
            task.cancel()

    async def _cancel_all(self) -> None:
        """End what waits for workers that have died."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, key: bytes, task: asyncio.Task[None]) -> None:
        del self._tasks[key]
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, (self._api.llmapi.RequestError, ValueError)):
            error = NemotronError(f"the engine refuses the request: {error}")
        if isinstance(error, NemotronError):
            self._push(Chunk.of_error(key, error))
        else:  # any other exception means that the library's workers have died
            self._failure = error
            self._wake()

    async def _generate(self, request: Request) -> None:
        """Push the chunks of a request until its last one."""
        params = self._sampling_params(request)
        result = self._llm.generate_async(request.input_ids, params, streaming=True)
        try:
            # No `wait_for` around each step: before Python 3.12 it loses a cancellation that comes
            # together with the step.
            async for step in result:
                self._push(self._chunk(request, step))
                if step.finished:
                    return
        except (asyncio.CancelledError, NemotronError):
            result.abort()
            raise
        raise RuntimeError("an answer has ended without its last part")

    def _chunk(self, request: Request, step: Any) -> Chunk:
        """Return what a step has added to an answer.

        The C++ runtime stops at its `end_id` without returning it, so that token is added here. Its
        log-probability is unknown, and 0.
        """
        output = step.outputs[0]
        ids = list(output.token_ids_diff)
        log_probs = self._log_probs(output, ids) if request.log_probs else []
        reason = FINISH_REASONS.get(output.finish_reason, "cancelled") if step.finished else ""
        if reason == "stop" and request.end_ids:
            (last,) = output.token_ids[-1:] or (None,)
            if last not in request.end_ids:
                ids.append(request.end_ids[0])
                log_probs += [0.0] * request.log_probs
        return Chunk(request.key, ids, log_probs, reason)

    def _log_probs(self, output: Any, ids: list[int]) -> list[float]:
        """Return the log-probabilities of the tokens `ids`.

        Raises `NemotronError` if the library has left some out.
        """
        new = output.logprobs_diff
        if len(new) != len(ids):
            raise NemotronError(f"{len(ids)} tokens have {len(new)} log-probabilities")
        return [self._log_prob(entry, id_) for entry, id_ in zip(new, ids, strict=True)]

    @abstractmethod
    def _log_prob(self, entry: Any, id_: int) -> float:
        """Return the log-probability of a token out of what the library returns for it."""

    def _push(self, chunk: Chunk) -> None:
        with self._lock:
            is_first = not self._pending
            if (pending := self._pending.get(chunk.key)) is None:
                self._pending[chunk.key] = chunk
            else:
                pending.token_ids += chunk.token_ids
                pending.log_probs += chunk.log_probs
                pending.finish_reason = chunk.finish_reason
        if is_first:
            self._wake()

    def _wake(self) -> None:
        assert self.wake_file is not None
        os.eventfd_write(self.wake_file, 1)

    def _sampling_params(self, request: Request) -> Any:
        fields: dict[str, Any] = {
            "max_tokens": request.max_tokens,
            # The library masks the logit of `end_id`, also if that is no token's: then it writes
            # beside the logits.
            "min_tokens": (request.min_tokens or None) if request.end_ids else None,
            "include_stop_str_in_output": True,  # keeps tokens that were counted
            "seed": request.seed,
            "repetition_penalty": request.repetition_penalty,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "detokenize": False,
            "add_special_tokens": False,
            **self._end_fields(request),
        }
        if request.temperature > 0:
            fields |= {
                "temperature": request.temperature,
                "top_k": request.top_k or None,
                "top_p": request.top_p or 1.0,
            }
        else:
            fields["top_k"] = 1
        if request.log_probs:
            fields |= self.log_probs_fields
        if request.bias:
            fields["embedding_bias"] = self._bias(request.bias)
        if request.guide_type:
            fields["guided_decoding"] = self._guide(request.guide_type, request.guide)
        return self._api.SamplingParams(**fields)

    def _end_fields(self, request: Request) -> dict[str, Any]:
        end_id = request.end_ids[0] if request.end_ids else NO_END_ID
        return _end_fields(end_id, request.end_ids[1:])

    def _bias(self, bias: dict[int, float]) -> Any:
        tensor = self._torch.zeros(self.settings.vocab_size)
        tensor[list(bias)] = self._torch.tensor(list(bias.values()))
        return tensor

    def _guide(self, guide_type: str, guide: str) -> Any:
        params = self._api.llmapi.GuidedDecodingParams
        if guide_type == "json":
            return params(json_object=True)
        return params(**{GUIDE_FIELDS.get(guide_type, guide_type): guide})


class TensorRTAdapter(_LlmAdapter):
    """The adapter of the TensorRT lane: an engine of `trtllm-build`, which has a TP and a PP."""

    log_probs_fields: ClassVar = {"_return_log_probs": True}
    """Asks the C++ runtime for them; `logprobs` would send all logits to Python."""

    def _load(self, folder: Path) -> Any:
        settings = self.settings = TensorRTEngineSettings.read(folder)
        return importlib.import_module(f"{LIBRARY}._tensorrt_engine").LLM(
            model=str(folder),
            tokenizer=str(folder),
            trust_remote_code=False,
            max_batch_size=settings.max_batch_size,
            max_num_tokens=settings.max_num_tokens,
            enable_chunked_prefill=settings.paged_context,
            guided_decoding_backend="xgrammar",
            kv_cache_config=self._api.llmapi.KvCacheConfig(
                enable_block_reuse=settings.paged_context,
                free_gpu_memory_fraction=settings.kv_cache_share,
            ),
        )

    def _end_fields(self, request: Request) -> dict[str, Any]:
        """Return the end tokens as stop tokens, which the C++ runtime returns in the answer.

        Only the `end_id` counts for `min_tokens`, however, so such a request has one.
        """
        if request.min_tokens:
            return super()._end_fields(request)
        return _end_fields(NO_END_ID, request.end_ids)

    def _log_prob(self, entry: Any, id_: int) -> float:
        return float(entry)


class PyTorchAdapter(_LlmAdapter):
    """The adapter of the PyTorch lane: a Hugging Face folder."""

    log_probs_fields: ClassVar = {"logprobs": 1}

    def _load(self, folder: Path) -> Any:
        settings = self.settings = PyTorchEngineSettings.read(folder)
        return self._api.LLM(
            model=str(folder),
            trust_remote_code=False,
            tensor_parallel_size=settings.tp,
            pipeline_parallel_size=settings.pp,
            gpus_per_node=settings.gpus_per_node,
            max_batch_size=settings.max_batch_size,
            max_num_tokens=settings.max_num_tokens,
            max_seq_len=settings.max_seq_len,
            enable_chunked_prefill=True,
            guided_decoding_backend="xgrammar",
            kv_cache_config=self._api.llmapi.KvCacheConfig(
                enable_block_reuse=True,
                free_gpu_memory_fraction=settings.kv_cache_share,
                dtype="fp8" if settings.kv_cache_dtype == "fp8" else "auto",
            ),
        )

    def _log_prob(self, entry: Any, id_: int) -> float:
        """See the base. The table has the most probable token too. Raises `NemotronError`."""
        if (own := entry.get(id_)) is None:
            raise NemotronError(f"token {id_} has no log-probability of its own")
        return float(own.logprob)


def _end_fields(end_id: int, stop_ids: list[int]) -> dict[str, Any]:
    return {"end_id": end_id, "pad_id": max(end_id, 0), "stop_token_ids": stop_ids or None}
