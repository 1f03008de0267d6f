"""The library's class for engines of `trtllm-build`, in 1.2 only; see the package."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ..base_llm import COMMON, IS_1_2, VERSION, BaseLLM
from ..llmapi import KvCacheConfig, RequestError
from ..sampling_params import SamplingParams

if not IS_1_2:
    raise ImportError(f"cannot import name 'LLM': {VERSION} has no engines", name=__name__)


class LLM(BaseLLM):
    """An engine has its split and its limits, of which the arguments may lower some."""

    allowed = COMMON | {
        *("batching_type", "extended_runtime_perf_knob_config", "normalize_log_probs"),
        "fail_fast_on_attention_window_too_large",
    }
    returns_end_id = False

    def _check(self, folder: Path, arguments: dict[str, Any], kv_cache: KvCacheConfig) -> None:
        """Compare with the engine's `config.json` (llmapi/llm_args.py, 1.2)."""
        config = json.loads((folder / "config.json").read_text())
        mapping, built = _mapping(folder), config["build_config"]
        for name, key in (
            ("tensor_parallel_size", "tp_size"),
            ("pipeline_parallel_size", "pp_size"),
        ):
            if arguments.get(name, 1) not in (1, mapping[key]):
                raise ValueError(
                    f"{key} {arguments[name]} is not consistent with the engine's {mapping[key]}"
                )
        assert kv_cache.dtype == "auto", "the type of the KV cache is the engine's"
        if (self.max_batch_size or 0) > built["max_batch_size"]:
            logging.getLogger("TRT-LLM").warning(
                "max_batch_size [%s] is clamped to %s", self.max_batch_size, built["max_batch_size"]
            )
            self.max_batch_size = built["max_batch_size"]
        self._has_context_logits = bool(built["gather_context_logits"])
        self._has_generation_logits = bool(built["gather_generation_logits"])
        for rank in range(mapping["world_size"]):
            if not (folder / f"rank{rank}.engine").is_file():
                raise ValueError(f"no engine of rank {rank}")

    def _world_size(self, folder: Path, arguments: dict[str, Any]) -> int:
        return int(_mapping(folder)["world_size"])

    def _check_params(self, params: SamplingParams) -> None:
        """See the base (`_check_arguments` of llmapi/llm.py, 1.2, and the C++ executor)."""
        if params.prompt_logprobs and not self._has_context_logits:
            raise ValueError("prompt_logprobs requires gather_context_logits=True")
        if params.logprobs and not self.gathers_generation_logits:
            raise ValueError("logprobs requires gather_generation_logits=True")
        if params.return_context_logits and not self._has_context_logits:
            raise RequestError("the engine was built without context logits")
        if params.logprobs and not self._has_generation_logits:
            raise RequestError("the engine was built without generation logits")

    def _log_probs_kind(self, params: SamplingParams) -> int | None:
        """See the base: tables from whole logits, or numbers from the runtime."""
        return params.logprobs or (0 if params._return_log_probs else None)


def _mapping(folder: Path) -> dict[str, int]:
    config = json.loads((folder / "config.json").read_text())
    return dict(config["pretrained_config"]["mapping"])
