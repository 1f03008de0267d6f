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
    (one,) = plans(load_profile(profile), [gpu] if gpu else [], None)
    return one


def test_the_hand_knows_the_model() -> None:
    assert PARAMETERS == 341_029_195_776


def test_fp8_on_8_h100() -> None:
    found = plan("h100-fp8-tp8")
    # Linear layers in FP8; both vocabulary tables in BF16; norms in BF16, whole on every GPU.
    scales = 96 * 4 * 2 * 4
    assert found.weights == LINEAR // 8 + 2 * 2 * TABLE // 8 + 2 * NORMS + scales
    # A step reads all but the embedding: (331.6 + 9.4) GB / 8 / 3.35 TB/s.
    read = LINEAR / 8 + 2 * TABLE / 8
    assert found.weight_read_seconds == pytest.approx(read / 3.35e12, rel=1e-3)
    assert found.weight_read_seconds * 1e3 == pytest.approx(12.7, abs=0.05)
    # One KV head on each GPU: 2 · 96 · 192 numbers of two bytes.
    (stage,) = found.stages
    assert stage.kv_token == 73728
    # 79.65 GiB, less 40.8 of weights, 1 for CUDA and about 2 of activations, of which 0.9.
    assert found.kv_tokens * 73728 / GIB == pytest.approx(0.9 * (79.65 - 40.8 - 1 - 1.95), abs=1)
    assert found.sequences == found.kv_tokens // 4096 == 117
    # 64 full sequences: the weights, and 64 · 4096 · 73728 bytes of keys and values.
    step = (read + 64 * 4096 * 73728) / 3.35e12
    assert found.batch == 64
    assert found.decode_rate(64) == pytest.approx(64 / step, rel=1e-3)
    # 2 operations a weight in FP8; 4 · 2048 · 96 layers · 18432 channels of attention in BF16.
    seconds = 2 * LINEAR / 8 / 1978.9e12 + 4 * 2048 * 96 * 18432 / 8 / 989.4e12
    assert found.prefill_rate == pytest.approx(0.6 / seconds)
    assert found.disk == 2 * PARAMETERS + 2 * found.checkpoint
    assert found.checkpoint == 8 * found.weights


def test_two_pipeline_stages_on_16_a100() -> None:
    found = plan("a100-bf16-tp8-pp2")
    assert (found.gpus, len(found.stages)) == (16, 2)
    first, last = found.stages
    assert first.read == pytest.approx(LINEAR / 8, rel=1e-3)  # 48 layers in BF16
    assert last.read == pytest.approx((LINEAR + 2 * TABLE) / 8, rel=1e-3)
    # A token passes both stages; 64 of one batch pass the first while another's pass the second.
    both = (2 * LINEAR + 2 * TABLE) / 8 / 2.039e12
    assert found.weight_read_seconds == pytest.approx(both, rel=1e-3)
    kv = 64 * 4096 * 2 * 96 * 192 * 2
    assert found.decode_rate(64) == pytest.approx(2 * 64 / (both + kv / 2.039e12), rel=1e-3)


def test_large_batches_are_bound_by_arithmetic() -> None:
    profile = load_profile("h100-fp8-tp8")
    found = make_plan(profile, find_hardware("H100"))
    (stage,) = found.stages
    attention = 4 * 96 * 96 / 8 * 192 * 4096
    seconds = (
        2 * stage.linear["fp8"] / 1978.9e12 + (2 * TABLE / 8 + attention) / 989.4e12
    )  # of one token
    assert found.step_seconds(10_000) == pytest.approx(
        max(10_000 * seconds, (stage.read + 10_000 * 4096 * 73728) / 3.35e12)
    )


@pytest.mark.parametrize("name", [name for name in shipped_profiles() if name != "cpu"])
def test_every_profile_fits_its_gpu(name: str) -> None:
    found = plan(name)
    assert found.fits
    assert found.batch >= 32


def test_another_gpu_and_one_that_is_too_small() -> None:
    h200 = plan("h100-fp8-tp8", "H200")
    assert h200.weight_read_seconds * 1e3 == pytest.approx(12.725 * 3.35 / 4.8, abs=0.05)
    profile = load_profile("h200-bf16-tp8")
    assert not plans(profile, ["H100"], None)[0].fits
    for gpu, why in (("A100", "does not compute in FP8"), ("H1000", "nothing is known")):
        with pytest.raises(NemotronError, match=why):
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


def test_the_command() -> None:
    command = [NEMOTRON, "plan", "--profile", "h100-fp8-tp8", "--gpu", "H100", "--gpu", "H200"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for text in ("40.8 GiB", "12.7 ms", "117 sequences of 4096", "H200 141 GB", "disk"):
        assert text in done.stdout
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    h100, h200 = json.loads(done.stdout)
    assert h100["weight_read_seconds"] * 1e3 == pytest.approx(12.7, abs=0.05)
    assert h200["kv_tokens"] > h100["kv_tokens"]
