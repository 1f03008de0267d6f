"""The CPU lane: an OpenVINO model behind openvino-genai, on any machine."""

from __future__ import annotations

from pathlib import Path

from nemotron_build.lanes.deployment import Deployment, Sizing
from nemotron_build.lanes.lane import (
    BuildPlan,
    BuiltEngine,
    Lane,
    Library,
    open_checkpoint,
)
from nemotron_build.profile import CpuProfile
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import Dtype
from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.reward import HEAD_NAME
from nemotron_core.text import Tokenizer

SHARED_MEMORY = 64 << 20
"""Bytes that Triton's Python models take together."""
VOCABULARY_NAMES = ("openvino_detokenizer.xml", "openvino_detokenizer.bin")
"""File names that openvino-genai expects. Without these files an engine has no guides."""


class CpuLane(Lane):
    libraries = (
        Library(("openvino",), (">=2026.4,<2027",)),
        Library(("openvino-genai",), (">=2026.4,<2027",)),
    )
    is_compiled = True
    kinds = ("text", "reward")
    has_virtual_tokens = True

    def plan(self, checkpoint: Path, output: Path, profile: CpuProfile) -> BuildPlan:
        source = open_checkpoint(checkpoint)
        _check_weights(source, profile)
        _max_seq_len(source, profile)
        is_reward = source.reward_head() is not None
        names = CpuEngineSettings
        rest = [HEAD_NAME] if is_reward else VOCABULARY_NAMES
        return BuildPlan([names.GRAPH_NAME, names.WEIGHTS_NAME, names.NAME, *rest])

    def conversion(self, profile: CpuProfile) -> list[str]:
        return ["--tp", "1"]

    def build(self, checkpoint: Path, folder: Path, profile: CpuProfile) -> BuiltEngine:
        source = open_checkpoint(checkpoint)
        _check_weights(source, profile)
        _max_seq_len(source, profile)
        source.check_hashes()
        _save_model(source, folder, profile)
        limits = profile.limits
        settings = CpuEngineSettings(
            dtype=profile.dtype,
            vocab_size=source.config.vocab_size,
            max_seq_len=_max_seq_len(source, profile),
            virtual_tokens=source.manifest.virtual_tokens,
            max_batch_size=limits.max_batch_size,
            max_num_tokens=limits.max_num_tokens,
            kv_cache_tokens=limits.kv_cache_tokens,
            max_queue_size=limits.max_queue_size,
            request_seconds=profile.timeouts.request,
            draft=profile.draft_settings,
        )
        settings.write(folder)
        return BuiltEngine(source.hash, settings.max_seq_len, settings.vocab_size)

    def deployment(self, profile: CpuProfile) -> Deployment:
        return Deployment(shared_memory=SHARED_MEMORY, triton=profile.triton)

    def sizing(self, profile: CpuProfile) -> Sizing:
        tokens = profile.limits.kv_cache_tokens
        return Sizing(
            Parallel(1, 1),
            Dtype.BF16,
            profile.dtype,
            kv_cache_tokens=tokens,
            packed=profile.weights,
        )


def _check_weights(checkpoint: Checkpoint, profile: CpuProfile) -> None:
    """Raise `NemotronError` if the weights are quantized already."""
    if profile.weights != "bf16" and checkpoint.precision.weights is not Dtype.BF16:
        raise NemotronError(
            f"the checkpoint is FP8, so its weights cannot become {profile.weights.upper()}",
            where=checkpoint.folder,
            remedy="convert with --dtype bf16, or build without --weights",
        )


def _max_seq_len(checkpoint: Checkpoint, profile: CpuProfile) -> int:
    """Return the room for a prompt and its answer: what virtual tokens leave of a sequence.

    Raises `NemotronError` if they leave none.
    """
    limits, taken = profile.limits, checkpoint.manifest.virtual_tokens
    length = min(
        limits.max_seq_len, checkpoint.config.max_position_embeddings, limits.kv_cache_tokens
    )
    if length - taken < 2:  # a token of a prompt and one of an answer
        raise NemotronError(
            f"{taken} virtual tokens leave no room in sequences of {length} tokens",
            where=checkpoint.folder,
            remedy="use a profile with a larger limits.max_seq_len",
        )
    return length - taken


def _save_model(source: Checkpoint, folder: Path, profile: CpuProfile) -> None:
    """Write the graph of the checkpoint's kind, and what belongs to it."""
    from nemotron_build.openvino_file import save_graph  # noqa: PLC0415  # not on a GPU node
    from nemotron_build.openvino_model import build_model  # noqa: PLC0415
    from nemotron_build.openvino_reward_model import build_reward_model  # noqa: PLC0415
    from nemotron_build.openvino_vocabulary import save_vocabulary  # noqa: PLC0415

    path = folder / CpuEngineSettings.GRAPH_NAME
    if (head := source.reward_head()) is not None:
        save_graph(build_reward_model(source, profile.dtype, profile.weights), path)
        head.write(folder)
        return
    save_graph(build_model(source, profile.dtype, profile.weights), path)
    tokenizer = Tokenizer(source.tokenizer_path)
    save_vocabulary(tokenizer, source.config.vocab_size, folder / VOCABULARY_NAMES[0])
