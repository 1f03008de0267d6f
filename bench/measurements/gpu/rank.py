"""One rank of Nemotron-4-340B at TP=8, at its true size, on one GPU: the time of a step.

    PYTHON -m bench.measurements.gpu.rank RESULT.json [--tiny]

A rank has an eighth of the heads, of the MLP and of the vocabulary. It has random weights in FP8,
and sends nothing to other ranks, so what is missing from a real step is the communication. Needs
vLLM in PYTHON's environment, and nothing of the project's. `--tiny` is for a machine without a GPU:
a small model in BF16, to try the script.

Decoding is measured as the difference of two runs with different numbers of tokens, and a prompt's
prefill as the run with one token.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

TP = 8
MODEL: dict[str, Any] = {
    "architectures": ["NemotronForCausalLM"],
    "model_type": "nemotron",
    "hidden_act": "relu2",
    "norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "bos_token_id": 2,
    "eos_token_id": 3,
}
RANK = {
    "num_hidden_layers": 96,
    "hidden_size": 18432,
    "intermediate_size": 73728 // TP,
    "num_attention_heads": 96 // TP,
    "num_key_value_heads": 8 // TP,
    "head_dim": 192,
    "vocab_size": 256000 // TP,
}
TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 512,
}
FP8 = {
    "producer": {"name": "modelopt", "version": "0.47.0"},
    "quantization": {
        "quant_algo": "FP8",
        "kv_cache_quant_algo": None,
        "exclude_modules": ["lm_head", "model.embed_tokens"],
    },
}
"""`hf_quant_config.json` as `nemotron convert --format hf --dtype fp8` writes it."""
LOADS = ((1, 128), (64, 128), (64, 2048), (113, 128), (113, 2048))
"""Number of sequences and tokens of each prompt. 113 full sequences fit beside the weights in
80 GB."""
TINY_LOADS = ((1, 16), (4, 16))
TOKENS = 97
RUNS = 3
QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # as on the vLLM lane
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    os.environ.update(QUIET)
    if options.tiny:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        llm = load(write_model(Path(folder), tiny=options.tiny), tiny=options.tiny)
        result: dict[str, Any] = {
            "card": card(),
            "python": platform.python_version(),
            "vllm": importlib.import_module("vllm").__version__,
            "load_seconds": time.monotonic() - start,
            "runs": RUNS,
            "loads": {},
        }
        vocabulary = (TINY if options.tiny else RANK)["vocab_size"]
        for count, length in TINY_LOADS if options.tiny else LOADS:
            result["loads"][f"{count}x{length}"] = measure(llm, count, length, vocabulary)
            options.result.write_text(json.dumps(result, indent=1) + "\n")  # what there is by now
            print(f"{count} × {length}: {result['loads'][f'{count}x{length}']}", flush=True)


def write_model(folder: Path, *, tiny: bool) -> Path:
    """Write the configuration of a rank. Its weights are made when it is loaded."""
    (folder / "config.json").write_text(json.dumps(MODEL | (TINY if tiny else RANK)))
    if not tiny:
        (folder / "hf_quant_config.json").write_text(json.dumps(FP8))
    return folder


def load(folder: Path, *, tiny: bool) -> Any:
    """Return a `vllm.LLM` with random weights."""
    llm: Any = importlib.import_module("vllm").LLM
    sequences = max(count for count, _ in LOADS)
    arguments: dict[str, Any] = {
        "max_num_seqs": sequences,
        "max_num_batched_tokens": 8192,
        "gpu_memory_utilization": 0.93,
        "quantization": "modelopt",
        "compilation_config": {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [1, 64, sequences],
        },
    }
    if tiny:
        arguments = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 26}
    return llm(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=4096,
        enable_prefix_caching=False,
        **arguments,
    )


def measure(llm: Any, count: int, length: int, vocabulary: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of a step, and the rates in tokens per second."""
    generate(llm, count, length, vocabulary, 2)  # the first time is slower
    firsts, steps = [], []
    for _ in range(RUNS):
        first = generate(llm, count, length, vocabulary, 1)
        firsts.append(first)
        steps.append((generate(llm, count, length, vocabulary, TOKENS) - first) / (TOKENS - 1))
    return {
        "step_ms": spread([1e3 * seconds for seconds in steps]),
        "decode_tokens_per_second": spread([count / seconds for seconds in steps]),
        "prefill_tokens_per_second": spread([count * length / seconds for seconds in firsts]),
    }


def generate(llm: Any, count: int, length: int, vocabulary: int, tokens: int) -> float:
    """Return the seconds in which `count` sequences get `tokens` tokens each."""
    params = importlib.import_module("vllm").SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
    )
    prompts = [
        {"prompt_token_ids": [random.randrange(10, vocabulary) for _ in range(length)]}
        for _ in range(count)
    ]
    start = time.monotonic()
    llm.generate(prompts, params, use_tqdm=False)
    return time.monotonic() - start


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the extremes."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def card() -> str:
    """Return the GPU's name, or "none"."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return done.stdout.strip()


if __name__ == "__main__":
    main()
