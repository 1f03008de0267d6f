"""The library's class for engines of `trtllm-build`, until 1.2; see the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import BaseLLM, SamplingParams
from ..llmapi import KvCacheConfig


class LLM(BaseLLM):
    """An engine has its split; a smaller batch than it was built for is allowed."""

    returns_end_id = False

    def _check(self, folder: Path, arguments: dict[str, Any], kv_cache: KvCacheConfig) -> None:
        mapping = _mapping(folder)
        for name, key in (
            ("tensor_parallel_size", "tp_size"),
            ("pipeline_parallel_size", "pp_size"),
        ):
            if arguments.get(name, 1) not in (1, mapping[key]):
                raise ValueError(f"{key} {arguments[name]} is not consistent with the engine's")
        assert kv_cache.dtype == "auto"
        for rank in range(mapping["world_size"]):
            if not (folder / f"rank{rank}.engine").is_file():
                raise ValueError(f"no engine of rank {rank}")

    def _world_size(self, folder: Path, arguments: dict[str, Any]) -> int:
        return int(_mapping(folder)["world_size"])

    def _returns_log_probs(self, params: SamplingParams) -> bool:
        if params.logprobs:
            raise ValueError("logprobs needs gather_generation_logits=True")
        return params._return_log_probs

    def _log_prob(self, id_: int, value: float) -> float:
        return value


def _mapping(folder: Path) -> dict[str, int]:
    config = json.loads((folder / "config.json").read_text())
    return dict(config["pretrained_config"]["mapping"])
