"""The CPU lane: an OpenVINO model behind openvino-genai, on any machine."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import Message

from nemotron_build.lanes.lane import BuildPlan, BuiltEngine, ModelSettings
from nemotron_build.profile import CpuProfile
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.trtllm_config import CONFIG_NAME
from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.metrics import STEPS_METRIC
from nemotron_serve import triton_config as model_config


class CpuLane:
    libraries: tuple[str, ...] = ("openvino", "openvino-genai")
    progress_metric = STEPS_METRIC

    def plan(self, checkpoint: Path, output: Path, profile: CpuProfile) -> BuildPlan:
        open_bf16_or_fp8(checkpoint)
        files = CpuEngineSettings
        return BuildPlan([files.GRAPH_NAME, files.WEIGHTS_NAME, files.NAME])

    def build(self, checkpoint: Path, folder: Path, profile: CpuProfile) -> BuiltEngine:
        from nemotron_build.openvino_file import save_graph  # noqa: PLC0415  # not on a GPU node
        from nemotron_build.openvino_model import build_model  # noqa: PLC0415

        source = open_bf16_or_fp8(checkpoint)
        source.check_hashes()
        save_graph(build_model(source, profile.dtype), folder / CpuEngineSettings.GRAPH_NAME)
        limits = profile.limits
        settings = CpuEngineSettings(
            dtype=profile.dtype,
            vocab_size=source.config.vocab_size,
            max_seq_len=min(
                limits.max_seq_len, source.config.max_position_embeddings, limits.kv_cache_tokens
            ),
            max_batch_size=limits.max_batch_size,
            max_num_tokens=limits.max_num_tokens,
            kv_cache_tokens=limits.kv_cache_tokens,
            max_queue_size=limits.max_queue_size,
            request_seconds=profile.timeouts.request,
        )
        settings.write(folder)
        return BuiltEngine(source.hash, settings.max_seq_len, settings.vocab_size)

    def check_versions(self) -> None:
        """What an engine was built with is compared when it is opened."""

    def check_machine(self, profile: CpuProfile) -> None:
        """Every machine will do."""

    def models(self, settings: ModelSettings) -> list[tuple[Message, str]]:
        return model_config.with_python_engine(
            settings.prompt(), {"gpt_model_path": str(settings.engine), "lane": "cpu"}
        )


def open_bf16_or_fp8(path: Path) -> Checkpoint:
    """A TensorRT-LLM checkpoint that this model's engines can be built from."""
    checkpoint = Checkpoint.open(path)
    if checkpoint.config.apply_query_key_layer_scaling:
        raise NemotronError(
            "apply_query_key_layer_scaling is true, which this model does not have",
            where=path / CONFIG_NAME,
            remedy="convert again",
        )
    return checkpoint
