"""A stand-in for the part of TensorRT-LLM 1.3's `LLM` API that this project uses.

Names, arguments and results are the library's; an unknown argument raises, as there. Instead of
GPUs it runs the CPU engine whose folder the file `NEMOTRON_STANDIN_ENGINE` in the model's folder
names.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_engine.cpu import CpuEngine
from nemotron_engine.request import GenerationChunk, GenerationRequest

from . import llmapi
from .llmapi import GuidedDecodingParams, KvCacheConfig, RequestError

__all__ = ["LLM", "SamplingParams", "llmapi"]
ENGINE_NAME = "NEMOTRON_STANDIN_ENGINE"
CALLS = "NEMOTRON_STANDIN_CALLS"
"""File in the model's folder that records the arguments of every call."""


@dataclass(kw_only=True)
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
    guided_decoding: GuidedDecodingParams | None = None
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True


class LLM:
    def __init__(
        self,
        model: str,
        *,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        gpus_per_node: int | None = None,
        max_batch_size: int = 2048,
        max_num_tokens: int = 8192,
        max_seq_len: int | None = None,
        enable_chunked_prefill: bool = False,
        guided_decoding_backend: str | None = None,
        kv_cache_config: KvCacheConfig | None = None,
    ) -> None:
        assert not trust_remote_code
        assert (Path(model) / "config.json").is_file()
        self._calls = Path(model) / CALLS
        self._note(
            {
                "tp": tensor_parallel_size,
                "pp": pipeline_parallel_size,
                "gpus_per_node": gpus_per_node,
                "sizes": [max_batch_size, max_num_tokens, max_seq_len],
                "chunked": enable_chunked_prefill,
                "guided": guided_decoding_backend,
                "kv_cache": vars(kv_cache_config),
            }
        )
        self._engine = CpuEngine(Path((Path(model) / ENGINE_NAME).read_text()))

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        *,
        streaming: bool = False,
    ) -> RequestOutput:
        params = sampling_params or SamplingParams()
        assert streaming
        guide = params.guided_decoding
        noted = {
            k: v for k, v in vars(params).items() if k not in ("guided_decoding", "embedding_bias")
        }
        if params.embedding_bias is not None:
            noted["embedding_bias"] = params.embedding_bias.tolist()
        if guide is not None:
            noted["guided_decoding"] = vars(guide)
        self._note(noted)
        if params.max_tokens == UNWANTED:
            raise ValueError("max_tokens is one too many")
        if params.max_tokens == DEADLY:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return RequestOutput(self._engine, inputs, params)

    def shutdown(self) -> None:
        self._engine.close()

    def _note(self, what: dict[str, Any]) -> None:
        with self._calls.open("a") as file:
            file.write(json.dumps(what) + "\n")


DEADLY, UNWANTED = 1313, 1414
"""Values of `max_tokens` that kill the library, and that it refuses as an invalid argument."""


@dataclass
class CompletionOutput:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, llmapi.Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    _reported: int = 0

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._reported :]

    @property
    def logprobs_diff(self) -> list[dict[int, llmapi.Logprob]]:
        return self.logprobs[self._reported :]


class RequestOutput:
    """An asynchronous iterator that yields itself as it grows."""

    def __init__(self, engine: CpuEngine, ids: list[int], params: SamplingParams) -> None:
        self.outputs = [CompletionOutput()]
        self.finished = False
        self._engine = engine
        self._id = uuid.uuid4().hex
        self._chunks: asyncio.Queue[GenerationChunk | NemotronError] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        end_ids = list(params.stop_token_ids or ())
        self._cut = [] if params.include_stop_str_in_output else end_ids.copy()
        if params.end_id is not None and not params.ignore_eos:
            end_ids.append(params.end_id)
        greedy = params.top_k == 1 or not (params.temperature or params.top_p or params.top_k)
        request = GenerationRequest(
            request_id=self._id,
            input_ids=tuple(ids),
            max_tokens=params.max_tokens,
            end_ids=tuple(end_ids),
            temperature=None if greedy else params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            seed=params.seed,
            min_tokens=params.min_tokens,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            log_probs=params.logprobs is not None,
        )
        put = self._chunks.put_nowait
        try:
            engine.submit_all([(request, lambda chunk: loop.call_soon_threadsafe(put, chunk))])
        except NemotronError as error:
            raise RequestError(str(error)) from error

    def abort(self) -> None:
        self._engine.cancel(self._id)

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        chunk = await self._chunks.get()
        if isinstance(chunk, NemotronError):
            raise RequestError(str(chunk))
        (output,) = self.outputs
        output._reported = len(output.token_ids)
        output.token_ids += chunk.token_ids
        output.logprobs += [
            {id_: llmapi.Logprob(value)}
            for id_, value in zip(chunk.token_ids, chunk.log_probs, strict=False)
        ]
        output.finish_reason = chunk.finish_reason
        if chunk.finish_reason == "stop" and output.token_ids[-1] in self._cut:
            output.token_ids = output.token_ids[:-1]
        self.finished = chunk.finish_reason is not None
        return self
