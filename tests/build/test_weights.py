"""INT8 and INT4 weights: the rounding itself, and what the graph and the plan make of it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_build.engine_folder import plan_engine
from nemotron_build.hardware import Hardware
from nemotron_build.openvino_weights import table_node, weight_node
from nemotron_build.plan import make_plan
from nemotron_build.profile import CpuProfile, load_profile, with_weights
from nemotron_build.weights import (
    INT4_MAX,
    INT8_MAX,
    Weights,
    packed_bytes,
    quantize,
    quantize_weight,
)
from nemotron_core.errors import NemotronError
from nemotron_core.family import FAMILY
from nemotron_core.openvino import openvino, opset13

LINEAR, HEAD = "transformer.layers.0.mlp.fc.weight", "lm_head.weight"


def matrix(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02
    return values.astype(ml_dtypes.bfloat16)


@settings(max_examples=40)
@given(st.integers(1, 5), st.sampled_from([1, 2, 3]), st.sampled_from([32, 128]), st.data())
def test_int8_is_within_half_a_step(
    rows: int, groups: int, group: int, data: st.DataObject
) -> None:
    weights = matrix(rows, groups * group, data.draw(st.integers(0, 1000)))
    quantized = quantize(weights, group, INT8_MAX)
    step = quantized.scales.repeat(group, -1).reshape(weights.shape)
    error = np.abs(quantized.values - weights.astype(np.float32))
    assert (error <= step * 0.5001).all()
    peaks = np.abs(weights.astype(np.float32)).reshape(rows, groups, group).max(-1)
    assert np.allclose(quantized.scales[..., 0], peaks / INT8_MAX)


def test_int4_searches_a_better_scale_than_the_largest_weight_gives() -> None:
    weights = matrix(64, 512).astype(np.float32)
    grouped = weights.reshape(64, 4, 128)
    scale = np.abs(grouped).max(-1, keepdims=True) / INT4_MAX
    plain = (np.rint(grouped / scale) * scale).reshape(64, 512)
    found = quantize(weights, 128, INT4_MAX)
    assert np.abs(found.numbers).max() <= INT4_MAX
    assert np.square(found.values - weights).mean() < 0.97 * np.square(plain - weights).mean()


def test_zeros_stay_zeros() -> None:
    weights = np.zeros((3, 128), ml_dtypes.bfloat16)
    for largest in (INT4_MAX, INT8_MAX):
        quantized = quantize(weights, 128, largest)
        assert not quantized.values.any()
        assert np.isfinite(quantized.scales).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    weights = matrix(300, 256)
    weights[280, 3] = bad
    for kind in ("int8", "int4"):
        with pytest.raises(NemotronError, match=rf"holds NaN or Inf.*\[{LINEAR}\]"):
            quantize_weight(LINEAR, weights, kind)


@pytest.mark.parametrize("largest", [INT4_MAX, INT8_MAX])
@pytest.mark.parametrize("size", [3e38, 1e-38, 1e-40])
def test_very_large_and_small_weights_are_rounded_like_others(size: float, largest: int) -> None:
    values = np.linspace(-1, 1, 128, dtype=np.float32)[None] * np.float32(size)
    quantized = quantize(values, 128, largest)
    error = np.abs(quantized.values / np.float32(size) - values / np.float32(size))
    assert error.max() < 0.25 if largest == INT4_MAX else error.max() < 0.01


def test_the_head_and_odd_rows_stay_at_eight_bits() -> None:
    for name, columns, largest in ((LINEAR, 256, 7), (HEAD, 256, 127), (LINEAR, 100, 127)):
        quantized = quantize_weight(name, matrix(8, columns), "int4")
        assert quantized is not None
        assert np.abs(quantized.numbers).max() == largest
    assert quantize_weight(LINEAR, matrix(8, 256), "bf16") is None


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_the_plug_in_computes_with_these_numbers(weights: Weights, tmp_path: Path) -> None:
    """A table and a product in the plug-in equal those of the quantized numbers in NumPy."""
    small, table = matrix(96, 256), matrix(50, 256, seed=2)
    ids = opset13.parameter(openvino.PartialShape([-1, -1]), openvino.Type.i64)
    hidden = table_node("transformer.vocab_embedding.weight", table, weights, ids)
    product = opset13.matmul(hidden, weight_node(LINEAR, small, weights, marked=False), False, True)
    model = openvino.Model([opset13.result(product)], [ids], "product")
    openvino.save_model(model, tmp_path / "product.xml", compress_to_fp16=False)
    hint = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = openvino.Core().compile_model(tmp_path / "product.xml", "CPU", hint)
    numbers = np.array([[3, 49, 0, 7]])
    (actual,) = compiled([numbers]).values()
    wide = [
        one.astype(np.float32) if found is None else found.values
        for one, found in (
            (table, quantize_weight("transformer.vocab_embedding.weight", table, weights)),
            (small, quantize_weight(LINEAR, small, weights)),
        )
    ]
    expected = wide[0][numbers] @ wide[1].T
    assert np.allclose(actual, expected, atol=1e-5)


def test_the_plan_counts_the_bytes_that_are_stored() -> None:
    """A 4B reads, for a token, its linear layers and its head."""
    shape = FAMILY["nemotron-mini-4b-instruct"].config
    linear = 32 * (3072 * (24 + 16) * 128 + 3072 * 3072 + 2 * 3072 * 9216)
    head = 256_000 * 3072
    profile = load_profile("cpu")
    machine = Hardware("x", 1 << 40, 1e9, {})
    read = {}
    for weights in ("bf16", "int8", "int4"):
        chosen = with_weights(profile, weights)
        (stage,) = make_plan(chosen, machine, shape=shape).stages
        read[weights] = stage.read
    assert read["bf16"] == pytest.approx(2 * (linear + head), rel=1e-3)
    assert read["int8"] == pytest.approx(linear + head, rel=5e-3)
    assert read["int4"] == pytest.approx(linear * (0.5 + 4 / 128) + head, rel=5e-3)
    assert packed_bytes("norm", (3072,), "int4") == 2 * 3072


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize(("name", "columns"), [(LINEAR, 256), (LINEAR, 96), (HEAD, 256)])
def test_the_bytes_of_a_weight_are_those_of_its_constants(
    weights: Weights, name: str, columns: int
) -> None:
    values = matrix(6, columns)
    node = weight_node(name, values, weights, marked=False)
    constants = [
        node
        for node in openvino.Model([opset13.result(node)], [], "weight").get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() != openvino.Type.i64
    ]  # those of 64 bits are shapes
    stored = sum(constant.get_byte_size() for constant in constants)
    assert stored == packed_bytes(name, values.shape, weights)


def test_only_the_cpu_lane_changes_weights(checkpoint_fp8: Path, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=r"lane vllm takes weights as they .*--dtype fp8"):
        with_weights(load_profile("one-gpu"), "int8")
    profile = with_weights(load_profile("cpu"), "int4")
    assert isinstance(profile, CpuProfile)
    with pytest.raises(NemotronError, match="the checkpoint is FP8, so its weights cannot become"):
        plan_engine(checkpoint_fp8, tmp_path / "engine", profile)
