"""What both of the library's classes have in common (llmapi/llm.py, 1.2)."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

from .llmapi import KvCacheConfig
from .result import RequestOutput
from .sampling_params import SamplingParams
from .session import Session
from .worker import Worker

VERSION = importlib.metadata.version("tensorrt-llm")
IS_1_2 = VERSION.startswith("1.2.")
ENGINE_NAME = "NEMOTRON_STANDIN_ENGINE"
CALLS = "NEMOTRON_STANDIN_CALLS"
"""File in the model's folder that records the arguments of every call."""
DEADLY, UNWANTED, SILENT = 1313, 1414, 1515
"""Values of `max_tokens` with which a worker raises an error, with which the library refuses the
request as an invalid argument, and with which a worker is killed by a signal."""
COMMON = frozenset(
    {
        *("tokenizer", "tokenizer_mode", "skip_tokenizer_init", "trust_remote_code"),
        *("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size"),
        *("gpus_per_node", "dtype", "revision", "max_batch_size", "max_num_tokens"),
        *("max_seq_len", "max_input_len", "max_beam_width", "enable_chunked_prefill"),
        *("guided_decoding_backend", "kv_cache_config", "scheduler_config"),
        *("gather_generation_logits", "iter_stats_max_iterations", "return_perf_metrics"),
    }
)
"""Arguments that both classes have (`BaseLlmArgs` of llmapi/llm_args.py, 1.2). This list may lack
some, so that the stand-in refuses more than the library."""


class BaseLLM:
    """A constructor that takes no other arguments than `allowed`."""

    allowed = COMMON
    guided_backends: tuple[str | None, ...] = (None, "xgrammar")
    returns_end_id = True
    knows_prompt_tokens = False
    stream_interval = 1

    def __init__(self, model: str, **arguments: Any) -> None:
        for name in arguments:
            if name not in self.allowed:
                raise ValueError(f"{type(self).__name__} got invalid argument: {name}")
        folder = Path(model)
        assert not arguments.get("trust_remote_code")
        if (backend := arguments.get("guided_decoding_backend")) not in self.guided_backends:
            raise ValueError(f"Unsupported guided decoding backend {backend}")
        self._has_tokenizer = not arguments.get("skip_tokenizer_init")
        tokenizer = Path(arguments.get("tokenizer") or model)
        has_vocabulary = self._has_tokenizer and (tokenizer / "tokenizer.json").is_file()
        if backend and not has_vocabulary:
            raise ValueError(f"Cannot get the vocabulary of the tokenizer {tokenizer}")
        kv_cache: KvCacheConfig = arguments.get("kv_cache_config") or KvCacheConfig()
        self.gathers_generation_logits = bool(arguments.get("gather_generation_logits"))
        self.max_batch_size = arguments.get("max_batch_size")
        self._check(folder, arguments, kv_cache)
        self._calls = folder / CALLS
        models = ("kv_cache_config", "cuda_graph_config", "speculative_config")
        configs = {name: arguments[name].model_dump() for name in models if name in arguments}
        self._note({**arguments, **configs})
        self._session = Session(self._world_size(folder, arguments))
        named = folder / ENGINE_NAME
        self.worker = Worker(Path(named.read_text()) if named.exists() else folder)
        self._is_shut_down = False

    def _check(self, folder: Path, arguments: dict[str, Any], kv_cache: KvCacheConfig) -> None:
        raise NotImplementedError

    def _world_size(self, folder: Path, arguments: dict[str, Any]) -> int:
        raise NotImplementedError

    def _check_params(self, params: SamplingParams) -> None:
        """Raise `ValueError` for what needs another engine or other arguments."""
        raise NotImplementedError

    def _log_probs_kind(self, params: SamplingParams) -> int | None:
        """Return the number of alternatives in each table, 0 for numbers, `None` for nothing."""
        raise NotImplementedError

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        *,
        streaming: bool = False,
        cache_salt: str | None = None,
        **others: Any,
    ) -> RequestOutput:
        """Begin a request by itself. What has died since the last call is raised here.

        `priority` is an argument from 1.3 on (llmapi/llm.py): higher ones first, 0 to 1. The
        stand-in does not follow it.
        """
        if self._is_shut_down:
            raise RuntimeError("LLM is shutting down")
        for name in others.keys() - (set() if IS_1_2 else {"priority"}):
            raise TypeError(f"generate_async() got an unexpected keyword argument '{name}'")
        if not 0 <= others.get("priority", 0.5) <= 1:
            raise ValueError(f"priority must be between 0.0 and 1.0, got {others['priority']}")
        params = sampling_params or SamplingParams()
        self._note({**params.noted(), "streaming": streaming, "cache_salt": cache_salt, **others})
        if params.end_id is None:
            if self._has_tokenizer:
                raise NotImplementedError("the stand-in has no tokenizer to ask")
            raise ValueError("tokenizer is required to reset end_id if it is None")
        if params.best_of != 1:
            raise NotImplementedError("the stand-in has one answer for a request")
        self._check_params(params)
        if params.max_tokens == UNWANTED:
            raise ValueError("max_tokens is one too many")
        try:
            params.check_ids(inputs, self.worker.vocab_size)
        except RuntimeError as error:  # it would end later, and with anything at all
            self.worker.die(error)
            self._handle_background_error()
        if params.max_tokens == DEADLY:
            self.worker.die(RuntimeError("CUDA error: an illegal memory access was encountered"))
            return RequestOutput(self, list(inputs), params, streaming=streaming)
        if params.max_tokens == SILENT:
            self.worker.die(None)
        result = RequestOutput(self, list(inputs), params, streaming=streaming)
        self._handle_background_error()
        return result

    def _handle_background_error(self) -> None:
        """Raise the error of a worker that has died, and shut down.

        Only whoever submits or has read a response comes here (executor/proxy.py, 1.2): a reader
        that waits is not woken, and of a worker that a signal has killed nothing is known at all.
        """
        if (error := self.worker.error) is not None:
            self._is_shut_down = True
            raise error

    def shutdown(self) -> None:
        """End the workers."""
        self._is_shut_down = True
        self.worker.close()
        self._session.shutdown()

    def _note(self, what: dict[str, Any]) -> None:
        if os.access(self._calls.parent, os.W_OK):
            with self._calls.open("a") as file:
                file.write(json.dumps(what) + "\n")
