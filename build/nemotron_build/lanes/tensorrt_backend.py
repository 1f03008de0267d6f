"""The configuration of `tensorrt_llm` for TensorRT-LLM 1.2's C++ backend."""

from __future__ import annotations

from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2 as pb

from nemotron_build.lanes.lane import ModelSettings
from nemotron_build.profile import TensorRTProfile
from nemotron_build.xgrammar import TOKENIZER_INFO_NAME
from nemotron_core.wire import FOREIGN_ENGINE_INPUTS, FOREIGN_ENGINE_OUTPUTS, Tensor
from nemotron_serve.triton_config import data_type

CANCELLATION_CHECK_MS = 10
"""Less than one step of the 340B model (12.7 ms to read its weights once, on 8 H100 in FP8)."""
STATS_CHECK_MS = 100


def tensorrt_llm(settings: ModelSettings) -> Message:
    """The engine; one instance, in which every rank takes part."""
    profile = settings.profile
    assert isinstance(profile, TensorRTProfile)
    config = pb.ModelConfig(
        name="tensorrt_llm", backend="tensorrtllm", max_batch_size=profile.limits.max_batch_size
    )
    config.model_transaction_policy.decoupled = True
    # The backend itself batches, while requests run; this only keeps Triton from waiting for more.
    # It reads the length of its own queue from here.
    config.dynamic_batching.max_queue_delay_microseconds = 0
    config.dynamic_batching.default_queue_policy.max_queue_size = profile.limits.max_queue_size
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    for one in FOREIGN_ENGINE_INPUTS:
        entry = config.input.add(
            name=one.name,
            data_type=data_type(one),
            dims=one.dims,
            optional=one.name not in ("input_lengths", "request_output_len"),
        )
        if _is_scalar(one):
            entry.reshape.SetInParent()  # to no dimension beside the batch
        else:
            entry.allow_ragged_batch = True
    for output in FOREIGN_ENGINE_OUTPUTS:
        config.output.add(name=output.name, data_type=data_type(output), dims=output.dims)
    for name, value in _parameters(settings, profile).items():
        config.parameters[name].string_value = value
    return config


def _is_scalar(one: Tensor) -> bool:
    return one.dims == (1,) and one.dtype != "STRING"


def _parameters(settings: ModelSettings, profile: TensorRTProfile) -> dict[str, str]:
    """Every parameter of the backend that this model has a use for.

    Left out are those of encoders, LoRA, draft models and lookahead, for which the backend takes
    "not there" for "not used".
    """
    chunked = profile.build_flags.get("use_paged_context_fmha") == "enable"
    triton = profile.triton
    return {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(settings.engine),
        "executor_worker_path": str(triton / "backends/tensorrtllm/trtllmExecutorWorker"),
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "max_beam_width": "1",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "kv_cache_free_gpu_mem_fraction": str(profile.kv_cache_share),
        "kv_cache_host_memory_bytes": "0",
        "kv_cache_onboard_blocks": "true",
        # Reusing blocks takes attention over paged context.
        "enable_kv_cache_reuse": _bool(chunked),
        "enable_chunked_context": _bool(chunked),
        "exclude_input_in_output": "true",
        "normalize_log_probs": "false",
        "decoding_mode": "top_k_top_p",
        "cancellation_check_period_ms": str(CANCELLATION_CHECK_MS),
        "stats_check_period_ms": str(STATS_CHECK_MS),
        "iter_stats_max_iterations": "1000",
        "request_stats_max_iterations": "0",
        "num_nodes": str(profile.split.nodes),
        "gpu_weights_percent": "1.0",
        "multi_block_mode": "true",
        "enable_context_fmha_fp32_acc": "false",
        "cuda_graph_mode": "false",
        "cuda_graph_cache_size": "0",
        "enable_trt_overlap": "false",
        "tokenizer_dir": "",
        "guided_decoding_backend": "xgrammar",
        "xgrammar_tokenizer_info_path": str(settings.engine / TOKENIZER_INFO_NAME),
    }


def _bool(value: bool) -> str:
    return "true" if value else "false"
