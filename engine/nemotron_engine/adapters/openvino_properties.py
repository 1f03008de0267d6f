"""The properties with which OpenVINO compiles the graphs of the CPU lane."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.openvino import openvino

COMPILED_SHAPES = 512
"""Number of compiled shapes that OpenVINO keeps, one for each number of tokens in a step. With its
default, 5000, memory grows for hours before it levels off."""
NOT_LOADED = "build the engine again, or give the machine more memory"


def properties(settings: CpuEngineSettings) -> dict[str, Any]:
    """Return the properties with which OpenVINO compiles an engine's graph."""
    precision = _precision(settings.dtype)
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,
        "CPU_RUNTIME_CACHE_CAPACITY": COMPILED_SHAPES,
    }


@lru_cache
def _precision(dtype: str) -> Any:
    """Return the type to compute in, which is the KV cache's type too.

    A CPU without BF16 arithmetic (AVX2 only) computes a BF16 engine in F32: its attention kernel
    refuses a BF16 cache. The answers are then closer to F32, and the cache takes twice the memory.
    """
    if dtype == "f32":
        return openvino.Type.f32
    if computes_in_bf16():
        return openvino.Type.bf16
    print("this CPU does not compute in BF16: the engine computes in F32", file=sys.stderr)
    return openvino.Type.f32


def computes_in_bf16() -> bool:
    """Return whether OpenVINO computes in BF16 on this machine's CPU."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
