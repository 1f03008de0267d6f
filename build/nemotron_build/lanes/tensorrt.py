"""The TensorRT lane: engines by `trtllm-build`, behind TensorRT-LLM 1.2's `LLM` API."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemotron_build.gpus import require_gpus
from nemotron_build.lanes.deployment import Sizing
from nemotron_build.lanes.gpu import GpuLane
from nemotron_build.lanes.lane import (
    BuildPlan,
    BuiltEngine,
    Library,
    open_checkpoint,
    require_options,
)
from nemotron_build.profile import TensorRTProfile
from nemotron_build.trtllm_build import LOGITS, TOOL, to_arguments
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.hf_tokenizer import write_hf_tokenizer
from nemotron_convert.target.layout import rank_name
from nemotron_convert.target.trtllm_config import CONFIG_NAME
from nemotron_core.engine_settings import TensorRTEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.text.chat_format import ChatFormat

VERSIONS = "~=1.2.0"
"""Versions of the last release line that has engines."""
LOG_TAIL_LINES = 5
HF_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
"""The tokenizer from which the library takes the vocabulary for guided decoding."""


class TensorRTLane(GpuLane):
    libraries = (Library(("tensorrt-llm",), (VERSIONS,)),)
    is_compiled = True

    def plan(self, checkpoint: Path, output: Path, profile: TensorRTProfile) -> BuildPlan:
        source = open_checkpoint(checkpoint)
        _check_fits(source, profile)
        ranks = range(profile.split.world_size)
        return BuildPlan(
            [
                CONFIG_NAME,
                *(f"rank{rank}.engine" for rank in ranks),
                *HF_TOKENIZER,
                TensorRTEngineSettings.NAME,
            ],
            _command(source, output, profile),
        )

    def conversion(self, profile: TensorRTProfile) -> list[str]:
        return [
            *("--tp", str(profile.split.tp), "--pp", str(profile.split.pp)),
            *("--dtype", profile.dtype, "--kv-cache-dtype", profile.kv_cache_dtype),
        ]

    def build(self, checkpoint: Path, folder: Path, profile: TensorRTProfile) -> BuiltEngine:
        self.installed(profile)
        if shutil.which(TOOL) is None:
            raise NemotronError(f"no {TOOL} on PATH", remedy="tensorrt-llm 1.2 brings it")
        gpu = require_gpus(profile.gpu, 1)
        plan = self.plan(checkpoint, folder, profile)
        source = open_checkpoint(checkpoint)
        source.check_hashes()
        assert plan.command is not None
        _run(plan.command)
        settings = _settings(source, profile)
        settings.write(folder)
        tokenizer, chat_format = source.tokenizer_path.read_bytes(), ChatFormat.read(checkpoint)
        write_hf_tokenizer(folder, tokenizer, settings.max_seq_len, chat_format)
        if missing := [name for name in plan.files if not (folder / name).is_file()]:
            raise NemotronError(f"{TOOL} has ended successfully, but has not written {missing[0]}")
        return BuiltEngine(source.hash, settings.max_seq_len, settings.vocab_size, str(gpu))

    def sizing(self, profile: Any) -> Sizing:
        return replace(super().sizing(profile), all_logits=profile.logits == "context")


def _settings(source: Checkpoint, profile: TensorRTProfile) -> TensorRTEngineSettings:
    limits = profile.limits
    return TensorRTEngineSettings(
        vocab_size=source.config.vocab_size,
        max_seq_len=min(limits.max_seq_len, source.config.max_position_embeddings),
        max_batch_size=limits.max_batch_size,
        max_num_tokens=limits.max_num_tokens,
        max_queue_size=limits.max_queue_size,
        request_seconds=profile.timeouts.request,
        paged_context=profile.build_flags.get("use_paged_context_fmha") == "enable",
        kv_cache_share=profile.kv_cache_share,
        logits=profile.logits,
    )


def _command(source: Checkpoint, output: Path, profile: TensorRTProfile) -> list[str]:
    settings = _settings(source, profile)
    flags = {
        "checkpoint_dir": source.folder,
        "output_dir": output,
        "max_batch_size": settings.max_batch_size,
        "max_input_len": settings.max_seq_len - 1,
        "max_seq_len": settings.max_seq_len,
        "max_num_tokens": settings.max_num_tokens,
        "max_beam_width": 1,
        "kv_cache_type": "paged",
    }
    return [
        *(TOOL, *to_arguments(flags), *to_arguments(profile.build_flags)),
        *LOGITS[profile.logits],
    ]


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
