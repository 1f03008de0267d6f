"""The TensorRT lane: engines by `trtllm-build`, behind TensorRT-LLM 1.2's C++ backend."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import deque
from dataclasses import replace
from pathlib import Path

from nemotron_build.gpus import require_gpus
from nemotron_build.lanes.deployment import Deployment, EngineModel
from nemotron_build.lanes.gpu import LIBRARY, GpuLane
from nemotron_build.lanes.lane import (
    BuildPlan,
    BuiltEngine,
    installed_version,
    open_checkpoint,
    require_options,
)
from nemotron_build.lanes.tensorrt_backend import BACKEND, engine_model
from nemotron_build.profile import GpuProfile, TensorRTProfile
from nemotron_build.trtllm_build import TOOL, to_arguments
from nemotron_build.xgrammar import TOKENIZER_INFO_NAME, write_tokenizer_info
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import rank_name
from nemotron_convert.target.trtllm_config import CONFIG_NAME
from nemotron_core.errors import NemotronError

VERSION = "1.2."
"""Beginning of the versions of the last release line that has engines."""
LOG_TAIL_LINES = 5
ITERATIONS_METRIC = 'nv_trt_llm_general_metrics{general_type="iteration_counter"'


class TensorRTLane(GpuLane):
    def plan(self, checkpoint: Path, output: Path, profile: TensorRTProfile) -> BuildPlan:
        source = open_checkpoint(checkpoint)
        _check_fits(source, profile)
        ranks = range(profile.split.world_size)
        return BuildPlan(
            [CONFIG_NAME, *(f"rank{rank}.engine" for rank in ranks), TOKENIZER_INFO_NAME],
            _command(source, output, profile),
        )

    def build(self, checkpoint: Path, folder: Path, profile: TensorRTProfile) -> BuiltEngine:
        self.check_versions()
        if shutil.which(TOOL) is None:
            raise NemotronError(f"no {TOOL} on PATH", remedy=f"{LIBRARY} {VERSION}x brings it")
        gpu = require_gpus(profile.gpu, 1)
        plan = self.plan(checkpoint, folder, profile)
        source = open_checkpoint(checkpoint)
        source.check_hashes()
        assert plan.command is not None
        _run(plan.command)
        write_tokenizer_info(source.tokenizer_path, folder)
        if missing := [name for name in plan.files if not (folder / name).is_file()]:
            raise NemotronError(f"{TOOL} has ended successfully, but has not written {missing[0]}")
        return BuiltEngine(
            source.hash, _max_seq_len(source, profile), source.config.vocab_size, str(gpu)
        )

    def check_versions(self) -> None:
        installed = installed_version(LIBRARY)
        if not installed.startswith(VERSION):
            raise NemotronError(
                f"{LIBRARY} {installed} is installed, which has no engines of this kind",
                remedy=f"use {LIBRARY} {VERSION}x, or a profile …-pytorch",
            )

    def deployment(self, profile: GpuProfile) -> Deployment:
        return replace(
            super().deployment(profile),
            backends=("python", BACKEND),
            progress_metric=ITERATIONS_METRIC,
            ranks=profile.split.world_size,
            nodes=profile.split.nodes,
        )

    def engine_model(self, profile: TensorRTProfile, engine: Path) -> EngineModel:
        return engine_model(profile, engine)


def _max_seq_len(source: Checkpoint, profile: TensorRTProfile) -> int:
    return min(profile.limits.max_seq_len, source.config.max_position_embeddings)


def _command(source: Checkpoint, output: Path, profile: TensorRTProfile) -> list[str]:
    limits = profile.limits
    max_seq_len = _max_seq_len(source, profile)
    flags = {
        "checkpoint_dir": source.folder,
        "output_dir": output,
        "max_batch_size": limits.max_batch_size,
        "max_input_len": max_seq_len - 1,
        "max_seq_len": max_seq_len,
        "max_num_tokens": limits.max_num_tokens,
        "max_beam_width": 1,
        "kv_cache_type": "paged",
    }
    return [TOOL, *to_arguments(flags), *to_arguments(profile.build_flags)]


def _check_fits(source: Checkpoint, profile: TensorRTProfile) -> None:
    manifest, split = source.manifest, profile.split
    require_options(
        source.folder,
        manifest,
        dtype=profile.dtype,
        kv_cache_dtype=profile.kv_cache_dtype,
        tp=split.tp,
        pp=split.pp,
    )
    largest = max(manifest.files[rank_name(rank)].size for rank in range(split.world_size))
    if largest > (profile.gpu.memory_gib << 30):
        raise NemotronError(
            f"the weights of one rank are {largest / 2**30:.1f} GiB, "
            f"a {profile.gpu.name} has {profile.gpu.memory_gib}",
            where=source.folder,
            remedy="use FP8, more pipeline stages, or larger GPUs",
        )


def _run(command: list[str]) -> None:
    """Run a command and show its output on this terminal.

    Raises `NemotronError` with the last lines of the output if the command fails.
    """
    tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its workers can be ended with it, also on Ctrl-C
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                tail.append(line.strip())
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise NemotronError(
            f"{command[0]} ended with status {process.returncode}: {' | '.join(tail)}"
        )
