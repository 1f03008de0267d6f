"""`nemotron plan` against figures worked out by hand for Nemotron-4-340B."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_build.hardware import find_hardware, read_bandwidth
from nemotron_build.plan import ServingPlan, make_plan, plans
from nemotron_build.profile import CpuProfile, load_profile, shipped_profiles
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_core.errors import NemotronError

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))

# From the model's published sizes: 96 layers of 18432 channels, 96 heads of 192, 8 KV heads, MLP of
# 73728, a vocabulary of 256000.
QKV = 18432 * (96 + 2 * 8) * 192
LINEAR = 96 * (QKV + 18432 * 18432 + 2 * 18432 * 73728)
TABLE = 256000 * 18432
NORMS = 2 * (2 * 96 + 1) * 18432
PARAMETERS = LINEAR + 2 * TABLE + NORMS
GIB = 2**30


def plan(profile: str, gpu: str | None = None) -> ServingPlan:
    (serving_plan,) = plans(load_profile(profile), [gpu] if gpu else [], None)
    return serving_plan


def test_the_sizes_by_hand_are_those_of_the_model() -> None:
    assert PARAMETERS == 341_029_195_776


def test_fp8_on_8_h100() -> None:
    serving_plan = plan("h100-fp8-tp8")
    # Linear layers in FP8; both vocabulary tables in BF16; norms in BF16, whole on every GPU.
    scales = 96 * 4 * 2 * 4
    assert serving_plan.weights == LINEAR // 8 + 2 * 2 * TABLE // 8 + 2 * NORMS + scales
    # A step reads all but the embedding: (331.6 + 9.4) GB / 8 / 3.35 TB/s.
    read = LINEAR / 8 + 2 * TABLE / 8
    assert serving_plan.weight_read_seconds == pytest.approx(read / 3.35e12, rel=1e-3)
    assert serving_plan.weight_read_seconds * 1e3 == pytest.approx(12.7, abs=0.05)
    # One KV head on each GPU: 2 · 96 · 192 numbers of two bytes.
    (stage,) = serving_plan.stages
    assert stage.kv_token == 73728
    # 79.65 GiB, less 40.8 of weights, 1 for CUDA and about 2 of activations, of which 0.9.
    assert serving_plan.kv_tokens * 73728 / GIB == pytest.approx(
        0.9 * (79.65 - 40.8 - 1 - 1.95), abs=1
    )
    assert serving_plan.sequences == serving_plan.kv_tokens // 4096 == 116
    # 64 full sequences: the weights, and 64 · 4096 · 73728 bytes of keys and values.
    step = (read + 64 * 4096 * 73728) / 3.35e12
    assert serving_plan.batch == 116
    assert serving_plan.decode_rate(64) == pytest.approx(64 / step, rel=1e-3)
    # 2 operations a weight in FP8; 4 · 2048 · 96 layers · 18432 channels of attention in BF16.
    seconds = 2 * LINEAR / 8 / 1978.9e12 + 4 * 2048 * 96 * 18432 / 8 / 989.4e12
    assert serving_plan.prefill_rate == pytest.approx(0.6 / seconds)
    assert serving_plan.disk == 2 * PARAMETERS + 2 * serving_plan.checkpoint
    assert serving_plan.checkpoint == 8 * serving_plan.weights


def test_two_pipeline_stages_on_16_a100() -> None:
    serving_plan = plan("a100-bf16-tp8-pp2")
    assert (serving_plan.gpus, len(serving_plan.stages)) == (16, 2)
    first, last = serving_plan.stages
    assert first.read == pytest.approx(LINEAR / 8, rel=1e-3)  # 48 layers in BF16
    assert last.read == pytest.approx((LINEAR + 2 * TABLE) / 8, rel=1e-3)
    # A token passes both stages; 64 of one batch pass the first while another's pass the second.
    read_seconds = (2 * LINEAR + 2 * TABLE) / 8 / 2.039e12
    assert serving_plan.weight_read_seconds == pytest.approx(read_seconds, rel=1e-3)
    kv = 64 * 4096 * 2 * 96 * 192 * 2
    assert serving_plan.decode_rate(64) == pytest.approx(
        2 * 64 / (read_seconds + kv / 2.039e12), rel=1e-3
    )


def test_large_batches_are_bound_by_arithmetic() -> None:
    profile = load_profile("h100-fp8-tp8")
    serving_plan = make_plan(profile, find_hardware("H100"))
    (stage,) = serving_plan.stages
    attention = 4 * 96 * 96 / 8 * 192 * 4096
    seconds = (
        2 * stage.linear["fp8"] / 1978.9e12 + (2 * TABLE / 8 + attention) / 989.4e12
    )  # of one token
    assert serving_plan.step_seconds(10_000) == pytest.approx(
        max(10_000 * seconds, (stage.read + 10_000 * 4096 * 73728) / 3.35e12)
    )


OTHERS = ("cpu", "laptop", "laptop-gpu", "one-gpu", "one-gpu-fp8")
"""Profiles that are not for the 340B."""


@pytest.mark.parametrize("name", [name for name in shipped_profiles() if name not in OTHERS])
def test_every_profile_fits_its_gpu(name: str) -> None:
    serving_plan = plan(name)
    assert serving_plan.fits
    assert serving_plan.batch >= 32


def test_any_gpu_with_a_small_model(checkpoint_tp8: Path) -> None:
    profile = load_profile("laptop-gpu")
    with pytest.raises(NemotronError, match="no data sheet figures for the GPU 'NVIDIA'"):
        plans(profile, [], None)
    assert not plans(profile, ["A100"], None)[0].fits
    assert plans(profile, ["A100"], checkpoint_tp8)[0].fits


def test_a_share_of_the_memory() -> None:
    """vLLM's share is of all memory, TensorRT-LLM's of what the weights leave."""
    profile = load_profile("h100-fp8-tp8-vllm")
    (whole,) = plans(profile, [], None)
    (half,) = plans(profile.model_copy(update={"memory_share": 0.65}), [], None)
    lost = int(80 * 2**30 * 0.25) // max(stage.kv_token for stage in whole.stages)
    assert whole.kv_tokens - half.kv_tokens == pytest.approx(lost, rel=0.01)


def test_the_logits_of_prompts_take_memory_and_time() -> None:
    """8,192 rows of 256,000 F32 numbers instead of 116, and the output layer for each token."""
    profile = load_profile("h100-fp8-tp8")
    whole, all_logits = (
        make_plan(profile.model_copy(update={"logits": logits}), find_hardware("H100"))
        for logits in ("generation", "context")
    )
    rows = 8192 - 116
    assert all_logits.activations - whole.activations == rows * 256000 * 4
    assert (whole.kv_tokens - all_logits.kv_tokens) * 73728 == pytest.approx(
        0.9 * rows * 256000 * 4, rel=1e-4
    )
    assert all_logits.sequences == 92
    assert whole.prefill_rate is not None
    assert all_logits.prefill_rate is not None
    head_seconds = 2 * TABLE / 8 / 989.4e12 / 0.6
    assert 1 / all_logits.prefill_rate - 1 / whole.prefill_rate == pytest.approx(head_seconds)


def test_another_gpu_and_a_gpu_that_is_too_small() -> None:
    h200 = plan("h100-fp8-tp8", "H200")
    assert h200.weight_read_seconds * 1e3 == pytest.approx(12.725 * 3.35 / 4.8, abs=0.05)
    profile = load_profile("h200-bf16-tp8")
    assert not plans(profile, ["H100"], None)[0].fits
    for gpu, reason in (("A100", "does not compute in FP8"), ("H1000", "no data sheet figures")):
        with pytest.raises(NemotronError, match=reason):
            plan("h100-fp8-tp8", gpu)
    with pytest.raises(NemotronError, match="for a CPU"):
        plan("cpu", "H100")


def test_the_cpu_lane(checkpoint_tp8: Path) -> None:
    profile = load_profile("cpu")
    assert isinstance(profile, CpuProfile)
    (tiny,) = plans(profile, [], checkpoint_tp8)
    assert tiny.fits
    assert tiny.kv_tokens == profile.limits.kv_cache_tokens
    assert tiny.prefill_rate is None
    assert tiny.weight_read_seconds == tiny.stages[0].read / tiny.hardware.bandwidth
    assert 1e9 < read_bandwidth() < 1e13
    (real,) = plans(profile, [], None)
    assert not real.fits  # unless a machine has 700 GB


def test_the_activations_are_those_of_the_checkpoints_own_vocabulary(checkpoint_tp8: Path) -> None:
    profile = load_profile("cpu")
    (tiny,) = plans(profile, [], checkpoint_tp8)
    config = Checkpoint.open(checkpoint_tp8).config
    shape = config.model_shape()
    # In BF16: residual stream, norm and a layer's output, QKV, and both sides of the MLP.
    qkv = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_size
    per_token = 2 * (3 * shape.hidden_size + qkv + 2 * shape.intermediate_size)
    logits = 4 * profile.limits.max_batch_size * config.vocab_size
    assert tiny.activations == profile.limits.max_num_tokens * per_token + logits


def test_the_command() -> None:
    command = [NEMOTRON, "plan", "--profile", "h100-fp8-tp8", "--gpu", "H100", "--gpu", "H200"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for text in ("40.8 GiB", "12.7 ms", "116 sequences of 4096", "H200 141 GB", "disk"):
        assert text in done.stdout
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    h100, h200 = json.loads(done.stdout)
    assert h100["weight_read_seconds"] * 1e3 == pytest.approx(12.7, abs=0.05)
    assert h200["kv_tokens"] > h100["kv_tokens"]
