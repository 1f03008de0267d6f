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

import psutil

from nemotron_core.engine_settings import (
    EngineSettings,
    PyTorchEngineSettings,
    TensorRTEngineSettings,
)
from nemotron_core.errors import NemotronError
from nemotron_engine.adapters.tensorrt_llm_draft import WITHOUT, draft_arguments
from nemotron_engine.adapters.tensorrt_llm_log_probs import LOGITS_FEATURES, MAX_LOG_PROBS, LogProbs
from nemotron_engine.adapters.tensorrt_llm_sampling import Sampling, library_priority
from nemotron_engine.outbox import Outbox
from nemotron_engine.protocol import GUIDE_TYPES, Capabilities, Chunk, Request

LIBRARY = "tensorrt_llm"
NO_TELEMETRY = "TRTLLM_NO_USAGE_STATS"
FINISH_REASONS = {"stop": "stop", "length": "length"}
MPI_POOL = "mpi4py.futures.server"
"""Module that mpi4py's pool runs in each of its processes."""
FEATURES = ["bias", "guides"]
"""What every engine of both lanes can do."""


class _LlmAdapter(ABC):
    """See `Adapter`. Requests run in one event loop, in a thread of its own.

    Raises `NemotronError` if the folder is no engine of this lane, or cannot be loaded.
    """

    settings: EngineSettings
    loras = None
    returns_end_id: ClassVar[bool]
    """Whether an answer has the library's `end_id`."""

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
        features = self._features()
        self.capabilities = Capabilities(
            features=FEATURES + features,
            guide_types=list(GUIDE_TYPES),
            max_log_probs=MAX_LOG_PROBS if features else 0,
            without=WITHOUT if self.settings.draft else [],
        )
        vocab_size = self.settings.vocab_size
        self._log_probs = LogProbs(
            self._torch,
            vocab_size,
            has_numbers=not self.returns_end_id,
            has_prompt_tables=self._has_prompt_tables(),
        )
        self._sampling = Sampling(
            self._api, self._torch, vocab_size, returns_end_id=self.returns_end_id
        )
        self.wake_file: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._pending = Outbox()
        """Chunks that `collect` has not returned yet."""
        self._failure: BaseException | None = None
        """Error after which the library is lost."""
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    @abstractmethod
    def _load(self, folder: Path) -> Any:
        """Read the settings, and return the library's `LLM`."""

    @abstractmethod
    def _features(self) -> list[str]:
        """Return what the loaded engine can do besides `FEATURES`."""

    def _has_prompt_tables(self) -> bool:
        """Return whether the library's tables of a prompt have the prompt's own tokens."""
        return False

    def _options(self, request: Request) -> dict[str, Any]:
        """Return what only this class's `generate_async` takes."""
        return {}

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
            chunks = self._pending.take()
        if self._failure is not None:
            raise self._failure
        return chunks

    def kv_cache_usage(self) -> float | None:
        """See `Adapter`. The library does not say."""
        return None

    def workers(self) -> list[int]:
        """See `Adapter`. On one machine, the library has a pool of mpi4py compute."""
        children = psutil.Process().children(recursive=True)
        return [child.pid for child in children if MPI_POOL in child.cmdline()]

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
        """Push the chunks of a request until its last one.

        With log-probabilities of the prompt there is one chunk, because the library may send all
        logits of the prompt with each; and no reused block, which would have no logits.
        """
        params = self._sampling.params(request, self._log_probs.fields(request))
        is_scored = request.prompt_log_probs is not None
        result = self._llm.generate_async(
            request.input_ids,
            params,
            streaming=not is_scored,
            cache_salt=request.key.hex() if is_scored else None,
            **self._options(request),
        )
        try:
            # No `wait_for` around each step: before Python 3.12 it loses a cancellation that comes
            # together with the step.
            async for step in result:
                chunk = self._chunk(request, step)
                if is_scored:
                    chunk.prompt_log_probs = await asyncio.to_thread(
                        self._log_probs.of_prompt, request, step
                    )
                self._push(chunk)
                if step.finished:
                    return
        except (asyncio.CancelledError, NemotronError):
            result.abort()
            raise
        raise RuntimeError("an answer has ended without its last part")

    def _chunk(self, request: Request, step: Any) -> Chunk:
        """Return what a step has added to an answer.

        The C++ runtime stops at its `end_id` without returning it, so that token is added here. Its
        log-probability is unknown, and 0; it has no alternatives.
        """
        output = step.outputs[0]
        ids = list(output.token_ids_diff)
        log_probs, top = self._log_probs.of_tokens(request, output, ids)
        reason = FINISH_REASONS.get(output.finish_reason, "cancelled") if step.finished else ""
        if reason == "stop" and request.end_ids:
            (last,) = output.token_ids[-1:] or (None,)
            if last not in request.end_ids:
                ids.append(request.end_ids[0])
                log_probs += [0.0] * request.log_probs
                top += [[]] * bool(request.top_log_probs)
        return Chunk(request.key, ids, log_probs, reason, top_log_probs=top)

    def _push(self, chunk: Chunk) -> None:
        with self._lock:
            is_first = not self._pending
            self._pending.put(chunk)
        if is_first:
            self._wake()

    def _wake(self) -> None:
        assert self.wake_file is not None
        os.eventfd_write(self.wake_file, 1)


class TensorRTAdapter(_LlmAdapter):
    """The adapter of the TensorRT lane: an engine of `trtllm-build`, which has a TP and a PP."""

    settings: TensorRTEngineSettings
    returns_end_id = False

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
            gather_generation_logits=settings.logits != "none",
            kv_cache_config=self._api.llmapi.KvCacheConfig(
                enable_block_reuse=settings.paged_context,
                free_gpu_memory_fraction=settings.kv_cache_share,
            ),
        )

    def _features(self) -> list[str]:
        return LOGITS_FEATURES[self.settings.logits]


class PyTorchAdapter(_LlmAdapter):
    """The adapter of the PyTorch lane: a Hugging Face folder."""

    returns_end_id = True

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
            **draft_arguments(self._api.llmapi, folder, settings),
            cuda_graph_config=self._api.llmapi.CudaGraphConfig(
                # With padding, a batch runs the graph of the next larger size that has one.
                max_batch_size=settings.max_batch_size,
                enable_padding=True,
            ),
            stream_interval=settings.stream_interval,
            guided_decoding_backend="xgrammar",
            kv_cache_config=self._api.llmapi.KvCacheConfig(
                enable_block_reuse=True,
                free_gpu_memory_fraction=settings.kv_cache_share,
                dtype="fp8" if settings.kv_cache_dtype == "fp8" else "auto",
            ),
        )

    def _features(self) -> list[str]:
        scores = LOGITS_FEATURES["context"]  # the library needs nothing for them
        return scores if self._is_1_2() else [*scores, "priorities"]

    def _has_prompt_tables(self) -> bool:
        return not self._is_1_2()

    def _options(self, request: Request) -> dict[str, Any]:
        return {} if self._is_1_2() else {"priority": library_priority(request.priority)}

    def _is_1_2(self) -> bool:
        return str(self._api.__version__).startswith("1.2.")
