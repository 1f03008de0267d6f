"""A stand-in for the parts of TensorRT-LLM's `LLM` API that this project uses, 1.2 and 1.3.

Names, arguments and results are the library's; whatever it refuses is refused here. Instead of GPUs
it runs the CPU engine in the model's folder, or whose folder the file `NEMOTRON_STANDIN_ENGINE` in
the model's folder names.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_engine.protocol import Chunk, Request

from . import llmapi
from .llmapi import GuidedDecodingParams, KvCacheConfig, RequestError
from .session import Session
from .worker import Worker

__all__ = ["LLM", "SamplingParams", "llmapi"]
__version__ = importlib.metadata.version("tensorrt-llm")
ENGINE_NAME = "NEMOTRON_STANDIN_ENGINE"
CALLS = "NEMOTRON_STANDIN_CALLS"
"""File in the model's folder that records the arguments of every call."""
DEADLY, UNWANTED = 1313, 1414
"""Values of `max_tokens` that kill the library, and that it refuses as an invalid argument."""


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    embedding_bias: Any = None
    n: int = 1
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: int | None = None
    _return_log_probs: bool = False
    guided_decoding: GuidedDecodingParams | None = None
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"require 0 <= top_p <= 1, got top_p={self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"require top_k >= 0, got top_k={self.top_k}")
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"require temperature >= 0, got temperature={self.temperature}")
        if self.guided_decoding is not None:
            self.guided_decoding._validate()

    @property
    def _greedy_decoding(self) -> bool:
        is_unset = self.temperature is None and self.top_p is None and self.top_k is None
        return is_unset or self.top_k == 1 or self.top_p == 0 or self.temperature == 0


class BaseLLM:
    """Both of the library's classes: a constructor that takes no other arguments than `allowed`."""

    allowed: frozenset[str] = frozenset(
        {
            *("tokenizer", "skip_tokenizer_init", "trust_remote_code", "tensor_parallel_size"),
            *("pipeline_parallel_size", "gpus_per_node", "max_batch_size", "max_num_tokens"),
            *("max_seq_len", "enable_chunked_prefill", "guided_decoding_backend"),
            "kv_cache_config",
        }
    )
    guided_backends: tuple[str | None, ...] = (None, "xgrammar")
    returns_end_id = True

    def __init__(self, model: str, **arguments: Any) -> None:
        for name in arguments:
            if name not in self.allowed:
                raise ValueError(f"{type(self).__name__} got invalid argument: {name}")
        folder = Path(model)
        assert not arguments.get("trust_remote_code")
        if (backend := arguments.get("guided_decoding_backend")) not in self.guided_backends:
            raise ValueError(f"Unrecognized guided decoding backend {backend}")
        tokenizer = Path(arguments.get("tokenizer") or model)
        if backend and not (tokenizer / "tokenizer.json").is_file():
            raise ValueError(f"Cannot get the vocabulary of the tokenizer {tokenizer}")
        kv_cache: KvCacheConfig = arguments.get("kv_cache_config") or KvCacheConfig()
        self._check(folder, arguments, kv_cache)
        self._calls = folder / CALLS
        self._note({**arguments, "kv_cache_config": vars(kv_cache)})
        self._session = Session(self._world_size(folder, arguments))
        named = folder / ENGINE_NAME
        self._worker = Worker(Path(named.read_text()) if named.exists() else folder)

    def _check(self, folder: Path, arguments: dict[str, Any], kv_cache: KvCacheConfig) -> None:
        raise NotImplementedError

    def _world_size(self, folder: Path, arguments: dict[str, Any]) -> int:
        raise NotImplementedError

    def _returns_log_probs(self, params: SamplingParams) -> bool:
        raise NotImplementedError

    def _log_prob(self, id_: int, value: float) -> Any:
        raise NotImplementedError

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        *,
        streaming: bool = False,
    ) -> RequestOutput:
        params = sampling_params or SamplingParams()
        assert streaming
        self._note(_noted(params))
        if params.max_tokens == UNWANTED:
            raise ValueError("max_tokens is one too many")
        if params.max_tokens == DEADLY:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return RequestOutput(self, self._worker, inputs, params)

    def shutdown(self) -> None:
        self._worker.close()
        self._session.shutdown()

    def _note(self, what: dict[str, Any]) -> None:
        if os.access(self._calls.parent, os.W_OK):
            with self._calls.open("a") as file:
                file.write(json.dumps(what) + "\n")


def _noted(params: SamplingParams) -> dict[str, Any]:
    noted = {name: getattr(params, name) for name in SamplingParams.__dataclass_fields__}
    if params.embedding_bias is not None:
        noted["embedding_bias"] = params.embedding_bias.tolist()
    if params.guided_decoding is not None:
        noted["guided_decoding"] = vars(params.guided_decoding)
    return noted


class LLM(BaseLLM):
    """The PyTorch backend: a Hugging Face folder, whose split the arguments name."""

    guided_backends = (None, "xgrammar", "llguidance")

    def _check(self, folder: Path, arguments: dict[str, Any], kv_cache: KvCacheConfig) -> None:
        assert "model_type" in json.loads((folder / "config.json").read_text())

    def _world_size(self, folder: Path, arguments: dict[str, Any]) -> int:
        return int(
            arguments.get("tensor_parallel_size", 1) * arguments.get("pipeline_parallel_size", 1)
        )

    def _returns_log_probs(self, params: SamplingParams) -> bool:
        return bool(params.logprobs)  # so 0 gives none

    def _log_prob(self, id_: int, value: float) -> Any:
        return {id_ + 1: llmapi.Logprob(0.0, 1), id_: llmapi.Logprob(value, 2)}


@dataclass
class CompletionOutput:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    _last_token_ids_len: int = 0
    _last_logprobs_len: int = 0

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._last_token_ids_len :]

    @property
    def logprobs_diff(self) -> list[Any]:
        return self.logprobs[self._last_logprobs_len :]


class RequestOutput:
    """An asynchronous iterator that yields itself as it grows."""

    def __init__(
        self, llm: BaseLLM, worker: Worker, ids: list[int], params: SamplingParams
    ) -> None:
        self.outputs = [CompletionOutput()]
        self.finished = False
        self._llm, self._worker = llm, worker
        self._chunks: asyncio.Queue[Chunk] = asyncio.Queue()
        self._has_log_probs = llm._returns_log_probs(params)
        loop = asyncio.get_running_loop()
        stop_ids = list(params.stop_token_ids or ())
        if params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        end_ids = [] if params.ignore_eos or params.end_id < 0 else [params.end_id]
        self._cut = [] if params.include_stop_str_in_output else stop_ids.copy()
        if not llm.returns_end_id:
            self._cut += end_ids
        request = Request(
            key=secrets.token_bytes(16),
            input_ids=list(ids),
            max_tokens=params.max_tokens,
            end_ids=end_ids + stop_ids,
            temperature=0.0 if params._greedy_decoding else params.temperature or 1.0,
            top_k=params.top_k or 0,
            top_p=params.top_p or 1.0,
            seed=params.seed or 0,
            min_tokens=params.min_tokens or 0,
            repetition_penalty=params.repetition_penalty or 1.0,
            presence_penalty=params.presence_penalty or 0.0,
            frequency_penalty=params.frequency_penalty or 0.0,
            log_probs=self._has_log_probs,
        )
        self._key = request.key
        put = self._chunks.put_nowait
        try:
            worker.ask(request, lambda chunk: loop.call_soon_threadsafe(put, chunk))
        except NemotronError as error:
            raise RequestError(str(error)) from error

    def abort(self) -> None:
        self._worker.cancel(self._key)

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        chunk = await self._chunks.get()
        if chunk.finish_reason == "error":
            raise RequestError(chunk.error)
        (output,) = self.outputs
        output._last_token_ids_len = len(output.token_ids)
        output._last_logprobs_len = len(output.logprobs)
        ids, log_probs = list(chunk.token_ids), list(chunk.log_probs)
        if chunk.finish_reason == "stop" and ids[-1:] and ids[-1] in self._cut:
            del ids[-1], log_probs[len(ids) :]
        output.token_ids += ids
        if self._has_log_probs:
            output.logprobs += map(self._llm._log_prob, ids, log_probs)
        output.finish_reason = chunk.finish_reason or None
        self.finished = bool(chunk.finish_reason)
        return self
