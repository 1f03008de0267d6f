"""The Triton model `tensorrt_llm` on TensorRT-LLM 1.2's C++ backend, as data."""

from __future__ import annotations

from pathlib import Path

from nemotron_build.lanes.deployment import EngineModel
from nemotron_build.profile import TensorRTProfile
from nemotron_build.xgrammar import TOKENIZER_INFO_NAME
from nemotron_core.wire import FOREIGN_ENGINE_INPUTS, FOREIGN_ENGINE_OUTPUTS

BACKEND = "tensorrtllm"
CANCELLATION_CHECK_MS = 10
"""Less than one step of the 340B model (12.7 ms to read its weights once, on 8 H100 in FP8)."""
STATS_CHECK_MS = 100


def engine_model(profile: TensorRTProfile, engine: Path) -> EngineModel:
    """Return the model for an engine folder. It has one instance, in which all ranks take part."""
    return EngineModel(
        backend=BACKEND,
        parameters=_parameters(profile, engine),
        inputs=FOREIGN_ENGINE_INPUTS,
        outputs=FOREIGN_ENGINE_OUTPUTS,
        required_inputs=frozenset({"input_lengths", "request_output_len"}),
        max_batch_size=profile.limits.max_batch_size,
        max_queue_size=profile.limits.max_queue_size,
    )


def _parameters(profile: TensorRTProfile, engine: Path) -> dict[str, str]:
    """Return every parameter of the backend that this model has a use for.

    The parameters of encoders, LoRA, draft models and lookahead are left out: the backend takes a
    missing parameter for "not used".
    """
    chunked = str(profile.build_flags.get("use_paged_context_fmha") == "enable").lower()
    return {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(engine),
        "executor_worker_path": str(profile.triton / "backends/tensorrtllm/trtllmExecutorWorker"),
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "max_beam_width": "1",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "kv_cache_free_gpu_mem_fraction": str(profile.kv_cache_share),
        "kv_cache_host_memory_bytes": "0",
        "kv_cache_onboard_blocks": "true",
        # Reusing blocks needs attention over paged context.
        "enable_kv_cache_reuse": chunked,
        "enable_chunked_context": chunked,
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
        "xgrammar_tokenizer_info_path": str(engine / TOKENIZER_INFO_NAME),
    }
