"""The library's submodule of the same name; see the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator


class RequestError(RuntimeError):
    """Raised when one request failed."""


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass(kw_only=True)
class GuidedDecodingParams:
    json: str | None = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: str | None = None

    def _validate(self) -> None:
        if (count := sum(map(bool, vars(self).values()))) > 1:
            raise ValueError(f"Only one guide can be used for a request, but got {count}.")


class _Strict(BaseModel):
    """Refuses unknown fields with a `ValueError` (`StrictBaseModel` of llmapi/llm_args.py, 1.2)."""

    model_config = ConfigDict(extra="forbid")


class KvCacheConfig(_Strict):
    enable_block_reuse: bool = True
    free_gpu_memory_fraction: float | None = None
    dtype: str = "auto"


class CudaGraphConfig(_Strict):
    """Exists for the PyTorch backend only (llmapi/llm_args.py, 1.2)."""

    batch_sizes: list[int] | None = None
    max_batch_size: int = 0
    enable_padding: bool = False

    @model_validator(mode="after")
    def _sizes(self) -> CudaGraphConfig:
        if self.max_batch_size < 0:
            raise ValueError("cuda_graph_config.max_batch_size must be non-negative")
        if self.batch_sizes and self.max_batch_size not in (0, max(self.batch_sizes)):
            raise ValueError("cuda_graph_config.batch_sizes and max_batch_size do not agree")
        return self


class NGramDecodingConfig(_Strict):
    """Exists for the PyTorch backend only (llmapi/llm_args.py, 1.2). Nothing is drafted here."""

    max_draft_len: PositiveInt
    max_matching_ngram_size: int = 0
    is_keep_all: bool = True
    is_use_oldest: bool = True
    is_public_pool: bool = True


class DraftTargetDecodingConfig(_Strict):
    """As above, with a Hugging Face folder."""

    max_draft_len: PositiveInt
    speculative_model_dir: str

    @model_validator(mode="after")
    def _is_a_model(self) -> DraftTargetDecodingConfig:
        if not (Path(self.speculative_model_dir) / "config.json").is_file():
            raise ValueError(f"{self.speculative_model_dir} is no model")
        return self
