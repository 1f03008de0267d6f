"""The library's submodule of the same name; see the package."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(kw_only=True)
class KvCacheConfig:
    enable_block_reuse: bool = True
    free_gpu_memory_fraction: float | None = None
    dtype: str = "auto"
