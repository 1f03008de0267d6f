"""A stand-in for `trtllm-build` of TensorRT-LLM 1.2: its flags, and an engine for the CPU.

One `rankN.engine` for each rank of the checkpoint, as the real one writes them, and beside them the
OpenVINO model that the stand-in for the library runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nemotron_build.lanes.cpu import CpuLane
from nemotron_build.profile import CpuProfile, load_profile

SWITCH = ("enable", "disable")
DTYPES = ("auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable")
SIZES = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
LOGITS = ("gather_context_logits", "gather_generation_logits")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    for name in (*SIZES, "workers"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--max_beam_width", type=int, default=1)
    parser.add_argument("--tokens_per_block", type=int, default=32)
    parser.add_argument("--kv_cache_type", choices=("continuous", "paged", "disabled"))
    for name in ("gpt_attention_plugin", "gemm_plugin", "nccl_plugin"):
        parser.add_argument(f"--{name}", choices=DTYPES)
    for name in ("use_paged_context_fmha", "use_fp8_context_fmha", "multiple_profiles"):
        parser.add_argument(f"--{name}", choices=SWITCH)
    for name in LOGITS:
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    if (options.checkpoint_dir / "fail").exists():
        raise SystemExit("[TRT-LLM] [E] out of memory")
    config = json.loads((options.checkpoint_dir / "config.json").read_text())
    profile = load_profile("cpu")
    assert isinstance(profile, CpuProfile)
    limits = {"max_batch_size": options.max_batch_size, "max_seq_len": options.max_seq_len}
    profile = profile.model_copy(update={"limits": profile.limits.model_copy(update=limits)})
    CpuLane().build(options.checkpoint_dir, options.output_dir, profile)
    for rank in range(config["mapping"]["world_size"]):
        print(f"[TRT-LLM] [I] building the engine of rank {rank}", flush=True)
        (options.output_dir / f"rank{rank}.engine").write_text(f"rank {rank}")
    built = {name: getattr(options, name) for name in (*SIZES, *LOGITS)}
    engine = {"version": "1.2.1", "pretrained_config": config, "build_config": built}
    (options.output_dir / "config.json").write_text(json.dumps(engine))


if __name__ == "__main__":
    main()
