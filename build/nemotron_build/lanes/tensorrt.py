"""The TensorRT lane: engines by `trtllm-build`, behind TensorRT-LLM 1.2's C++ backend."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import deque
from pathlib import Path

from google.protobuf.message import Message

from nemotron_build.gpus import require_gpus
from nemotron_build.lanes.cpu import open_bf16_or_fp8
from nemotron_build.lanes.lane import (
    BuildPlan,
    BuiltEngine,
    ModelSettings,
    installed_version,
)
from nemotron_build.profile import TensorRTProfile
from nemotron_build.trtllm_build import TOOL, to_arguments
from nemotron_build.xgrammar import TOKENIZER_INFO_NAME, write_tokenizer_info
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import rank_name
from nemotron_convert.target.trtllm_config import CONFIG_NAME
from nemotron_core.errors import NemotronError
from nemotron_serve import tensorrt_config
from nemotron_serve import triton_config as model_config

LIBRARY = "tensorrt-llm"
VERSION = "1.2."
"""The last line that has engines."""
LOG_TAIL_LINES = 5
ITERATIONS = 'nv_trt_llm_general_metrics{general_type="iteration_counter"'


class TensorRTLane:
    libraries: tuple[str, ...] = (LIBRARY,)
    progress_metric = ITERATIONS

    def plan(self, checkpoint: Path, output: Path, profile: TensorRTProfile) -> BuildPlan:
        source = open_bf16_or_fp8(checkpoint)
        _check_fits(source, profile)
        world = profile.split.world_size
        return BuildPlan(
            [CONFIG_NAME, *(f"rank{rank}.engine" for rank in range(world)), TOKENIZER_INFO_NAME],
            _command(source, output, profile),
        )

    def build(self, checkpoint: Path, folder: Path, profile: TensorRTProfile) -> BuiltEngine:
        self.check_versions()
        if shutil.which(TOOL) is None:
            raise NemotronError(f"no {TOOL} on PATH", remedy=f"{LIBRARY} {VERSION}x brings it")
        gpu = require_gpus(profile.gpu, 1)
        plan = self.plan(checkpoint, folder, profile)
        source = open_bf16_or_fp8(checkpoint)
        source.check_hashes()
        assert plan.command is not None
        _run(plan.command)
        write_tokenizer_info(source.tokenizer_path, folder)
        if missing := [name for name in plan.files if not (folder / name).is_file()]:
            raise NemotronError(f"{TOOL} has ended well, but has not written {missing[0]}")
        return BuiltEngine(
            source.hash, _max_seq_len(source, profile), source.config.vocab_size, str(gpu)
        )

    def check_versions(self) -> None:
        found = installed_version(LIBRARY)
        if not found.startswith(VERSION):
            raise NemotronError(
                f"{LIBRARY} {found} is installed, which has no engines of this kind",
                remedy=f"use {LIBRARY} {VERSION}x, or a profile …-pytorch",
            )

    def check_machine(self, profile: TensorRTProfile) -> None:
        self.check_versions()
        require_gpus(profile.gpu, profile.split.gpus_per_node)

    def models(self, settings: ModelSettings) -> list[tuple[Message, str]]:
        return [
            (tensorrt_config.tensorrt_llm(settings), ""),
            *model_config.around_a_foreign_engine(settings.prompt()),
        ]


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
    wanted = {
        "dtype": (manifest.dtype, profile.dtype, "--dtype"),
        "kv_cache_dtype": (manifest.kv_cache_dtype, profile.kv_cache_dtype, "--kv-cache-dtype"),
        "TP": (manifest.tp, split.tp, "--tp"),
        "PP": (manifest.pp, split.pp, "--pp"),
    }
    for name, (found, needed, option) in wanted.items():
        if found != needed:
            raise NemotronError(
                f"the checkpoint has {name} {found}, the profile {needed}",
                where=source.folder,
                remedy=f"convert with {option} {needed}, or use another profile",
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
    """Run it with its output on this terminal; NemotronError with its last lines if it fails."""
    last: deque[str] = deque(maxlen=LOG_TAIL_LINES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # its workers end with it, also on Ctrl-C
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                last.append(line.strip())
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise NemotronError(
            f"{command[0]} ended with status {process.returncode}: {' | '.join(last)}"
        )
