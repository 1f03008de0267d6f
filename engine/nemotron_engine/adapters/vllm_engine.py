"""vLLM's engine on one machine: its environment, its arguments, and its processes elsewhere."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from nemotron_core.engine_settings import VllmEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.launcher import first_machine, own_rank
from nemotron_core.reward import HEAD_NAME
from nemotron_engine.adapters.draft import NGRAM_TOKENS, draft_engine
from nemotron_engine.adapters.peft_folder import PROJECTIONS
from nemotron_engine.first_machine import end_with
from nemotron_engine.worker_watch import workers_watched

LIBRARY = "vllm"
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""No telemetry, no network, and the scheduler in this process, whatever the user's environment."""
DEFAULTS = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
"""A quiet log, and a sampler that compiles nothing."""
CPU_DEFAULTS = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""On a CPU, no compiler at the first request with log-probabilities (a minute), and threads that
are bound to no core, where they would wait for whatever else runs on it."""
CACHE_SIZE = "VLLM_CPU_KVCACHE_SPACE"
"""Variable that would take the place of the profile's size of the KV cache."""
PORT = "MASTER_PORT"
"""Environment variable with the port at which the machines meet, as PyTorch reads it."""
DEFAULT_PORT = 29501
MAX_LOG_PROBS = 20
"""Most alternatives at a token, vLLM's own default."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters for which vLLM makes room (`MaxLoRARanks`, config/lora.py, vLLM 0.32)."""
POOLING = {"runner": "pooling", "convert": "classify"}
"""Arguments that make vLLM load a reward model, and return scores instead of tokens."""
DTYPES = {"bf16": "auto", "fp8": "fp8"}
"""vLLM's names of the KV cache's types."""


def load_engine(folder: Path, settings: VllmEngineSettings) -> Any:
    """Return a `vllm.LLMEngine`. Raises `NemotronError` if it cannot be loaded."""
    set_environment(settings)
    arguments = engine_arguments(folder, settings, own_rank())
    api: Any = importlib.import_module(LIBRARY)
    if settings.kv_cache_tokens is not None:
        _check_head_size(folder)
    try:
        return api.LLMEngine.from_engine_args(api.EngineArgs(**arguments))
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise NemotronError(
            str(error), where=folder, remedy="see the engine's log for what vLLM says"
        ) from error


def work(folder: Path, place: tuple[int, int]) -> None:
    """Compute on this machine for the engine on the first one, until that ends.

    `place` is this process's rank and the number of machines. Raises `NemotronError` if the engine
    is for another number of them.
    """
    settings = VllmEngineSettings.read(folder)
    set_environment(settings)
    arguments = engine_arguments(folder, settings, place)
    api: Any = importlib.import_module(LIBRARY)
    executors: Any = importlib.import_module(f"{LIBRARY}.v1.executor.multiproc_executor")
    config = api.EngineArgs(**arguments).create_engine_config(headless=True)
    # As `vllm serve --headless` does, whose handlers of signals would cut off what drains.
    executor = executors.MultiprocExecutor(config, monitor_workers=False)
    end_with(first_machine(), _port(), executor.shutdown)
    with workers_watched(worker_ids(executor)):
        executor.start_worker_monitor(inline=True)


def worker_ids(executor: Any) -> list[int]:
    """Return the ids of the processes that vLLM computes in. A single rank has none of its own."""
    return [worker.proc.pid for worker in getattr(executor, "workers", ())]


def set_environment(settings: VllmEngineSettings) -> None:
    """Set the variables that vLLM reads when it is imported."""
    os.environ.update(ENVIRONMENT)
    os.environ.pop(CACHE_SIZE, None)
    is_cpu = settings.kv_cache_tokens is not None
    for name, text in (DEFAULTS | (CPU_DEFAULTS if is_cpu else {})).items():
        os.environ.setdefault(name, text)


def engine_arguments(
    folder: Path, settings: VllmEngineSettings, place: tuple[int, int] | None
) -> dict[str, Any]:
    """Return the arguments of vLLM's engine on one machine.

    `place` is the rank of this machine's process and the number of machines, or `None` for one.
    """
    arguments: dict[str, Any] = {
        "model": str(folder),
        "tokenizer": str(folder),
        "trust_remote_code": False,
        "dtype": "bfloat16",
        "kv_cache_dtype": DTYPES[settings.kv_cache_dtype],
        "tensor_parallel_size": settings.tp,
        "pipeline_parallel_size": settings.pp,
        "max_model_len": settings.max_seq_len,
        "max_num_seqs": settings.max_batch_size,
        "max_num_batched_tokens": settings.max_num_tokens,
        "max_logprobs": MAX_LOG_PROBS,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "structured_outputs_config": {"backend": "xgrammar"},  # as on the other lanes
        "generation_config": "vllm",  # none of the folder's defaults
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }
    if (folder / HEAD_NAME).exists():
        arguments |= POOLING
    elif settings.lora is not None:
        # On a CPU, requests without an adapter take the weights of the last place: it stays empty.
        places = settings.lora.max_adapters + 1
        arguments |= {
            "enable_lora": True,
            "max_loras": places,
            "max_cpu_loras": places,
            "max_lora_rank": _lora_rank(settings.lora.max_rank),
            # Not the head: its layer for adapters takes one position of each request, and the
            # engine ends when those of several prompts are to be scored (vLLM 0.32).
            "lora_target_modules": list(PROJECTIONS),
        }
    kv_bytes = _kv_bytes(folder)
    if settings.draft is not None:
        draft = draft_engine(folder, settings)
        arguments["speculative_config"] = _draft_arguments(draft, settings.draft.tokens)
        kv_bytes += _kv_bytes(draft) if draft else 0
    if settings.kv_cache_tokens is not None:
        arguments["enforce_eager"] = True
        arguments["kv_cache_memory_bytes"] = (
            settings.kv_cache_tokens * kv_bytes // (settings.tp * settings.pp)
        )
    else:
        arguments["gpu_memory_utilization"] = settings.memory_share
    nodes = settings.tp * settings.pp // settings.gpus_per_node
    if (place[1] if place else 1) != nodes:
        raise NemotronError(
            f"the engine is for {nodes} machines, a launcher has started"
            f" {place[1] if place else 'no'} processes",
            remedy="start one on each machine",
        )
    if place is not None:
        arguments |= {
            "distributed_executor_backend": "mp",
            "nnodes": place[1],
            "node_rank": place[0],
            "master_addr": first_machine(),
            "master_port": _port(),
        }
    return arguments


def _draft_arguments(draft: Path | None, tokens: int) -> dict[str, Any]:
    """Return vLLM's `speculative_config`. Without the folder of a draft it copies from the text."""
    if draft is None:
        return {
            "method": "ngram",
            "num_speculative_tokens": tokens,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": NGRAM_TOKENS,
        }
    return {"method": "draft_model", "model": str(draft), "num_speculative_tokens": tokens}


def _lora_rank(rank: int) -> int:
    """Return the smallest rank that vLLM has and that holds adapters of `rank`.

    >>> _lora_rank(20)
    32
    """
    return next((size for size in LORA_RANKS if size >= rank), LORA_RANKS[-1])


def _port() -> int:
    return int(os.environ.get(PORT, DEFAULT_PORT))


def _check_head_size(folder: Path) -> None:
    """Raise `NemotronError` if no kernel for CPUs computes heads of this size.

    vLLM loads such a model, and ends with the first request.
    """
    backend: Any = importlib.import_module(f"{LIBRARY}.v1.attention.backends.cpu_attn")
    sizes = backend.CPUAttentionBackend.get_supported_head_sizes()
    if (size := _shape(folder)[2]) not in sizes:
        raise NemotronError(
            f"vLLM computes no heads of {size} on a CPU",
            where=folder,
            remedy=f"use a model with heads of {', '.join(map(str, sizes))}, or the lane cpu",
        )


def _kv_bytes(folder: Path) -> int:
    """Return the bytes of the keys and values of one token in BF16, over all ranks."""
    layers, kv_heads, head_size = _shape(folder)
    return 2 * 2 * layers * kv_heads * head_size


def _shape(folder: Path) -> tuple[int, int, int]:
    """Return the number of layers and of heads for keys and values, and the size of a head."""
    config = json.loads((folder / "config.json").read_bytes())
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    return config["num_hidden_layers"], config.get("num_key_value_heads") or heads, head_size
