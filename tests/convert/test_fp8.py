"""FP8 checkpoints against those of ModelOpt, and the arithmetic of FP8."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from nemotron_convert.calibration.options import CALIBRATION_NAME, CalibrationOptions
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.fp8 import (
    E4M3_MAX,
    amax_bits,
    bf16_from_bits,
    e4m3_table,
    look_up,
    scale_of,
)
from nemotron_convert.target.layout import Dtype, Format, Precision, ScaleKind
from nemotron_convert.target.manifest import read_manifest
from nemotron_core.errors import NemotronError
from tests.convert.nemo import GOLDEN, NEMO, WEIGHTS, edit_config, unpack

IDS = GOLDEN / "calibration_ids.json"
FP8 = Precision(Dtype.FP8)
FP8_KV = Precision(Dtype.FP8, Dtype.FP8)
GOLDEN_FP8 = GOLDEN / "modelopt_fp8_tp2"


def fp8(
    tp: int, pp: int = 1, format: Format = Format.TRTLLM, precision: Precision = FP8
) -> Options:
    return Options(
        Parallel(tp, pp),
        format,
        precision=precision,
        calibration=CalibrationOptions(ids=IDS, memory=1 << 30),
    )


@pytest.fixture(scope="module")
def tp2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp8") / "tp2"
    convert(NEMO, folder, fp8(2))
    return folder


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("rank", [0, 1])
def test_modelopts_own_checkpoint(tp2: Path, rank: int) -> None:
    """Weights and their scales are equal; the inputs' scales come from another forward pass."""
    ours = load_file(tp2 / f"rank{rank}.safetensors")
    theirs = load_file(GOLDEN_FP8 / f"rank{rank}.safetensors")
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        if name.endswith("activation_scaling_factor"):
            torch.testing.assert_close(ours[name], expected, rtol=0.02, atol=0)
        else:
            assert same_bits(ours[name], expected), name


def test_modelopts_own_quantization_entry(tp2: Path) -> None:
    ours, theirs = (
        json.loads((folder / "config.json").read_text())["quantization"]
        for folder in (tp2, GOLDEN_FP8)
    )
    assert ours == theirs
    manifest = read_manifest(tp2)
    assert (manifest.dtype, manifest.kv_cache_dtype) == ("fp8", "bf16")
    assert CALIBRATION_NAME in manifest.files


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (4, 2), (16, 1), (8, 3)])
def test_every_split_holds_the_same_model(tp2: Path, tp: int, pp: int, tmp_path: Path) -> None:
    convert(NEMO, tmp_path / "out", fp8(tp, pp))
    at_tp2, split = Checkpoint.open(tp2), Checkpoint.open(tmp_path / "out")
    for layer in range(4):
        for linear in ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj"):
            name = f"transformer.layers.{layer}.{linear}.weight"
            assert at_tp2.tensor(name).tobytes() == split.tensor(name).tobytes()
            for kind in (ScaleKind.WEIGHT, ScaleKind.INPUT):
                assert at_tp2.scale(name, kind) == split.scale(name, kind)
    for rank in range(tp * pp):  # a scale is the same on every rank of a stage
        ranks = load_file(tmp_path / "out" / f"rank{rank}.safetensors")
        first = load_file(tmp_path / "out" / f"rank{rank // tp * tp}.safetensors")
        for name, tensor in ranks.items():
            if name.endswith("scaling_factor"):
                assert same_bits(tensor, first[name])


def test_hugging_face_holds_the_same_numbers(tp2: Path, tmp_path: Path) -> None:
    convert(NEMO, tmp_path / "out", fp8(1, format=Format.HF, precision=FP8_KV))
    ours = load_file(tmp_path / "out" / "model.safetensors")
    checkpoint = Checkpoint.open(tp2)
    pairs = {
        "attention.dense": "self_attn.o_proj",
        "mlp.fc": "mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
    }
    for layer in range(4):
        for trtllm, hf in pairs.items():
            weight = checkpoint.tensor(f"transformer.layers.{layer}.{trtllm}.weight")
            assert ours[f"model.layers.{layer}.{hf}.weight"].dtype == torch.float8_e4m3fn
            stored = ours[f"model.layers.{layer}.{hf}.weight"].view(torch.uint8).numpy()
            assert stored.tobytes() == weight.tobytes()
        attention = f"model.layers.{layer}.self_attn."
        together = [ours[f"{attention}{x}_proj.weight"].view(torch.uint8) for x in "qkv"]
        qkv = f"transformer.layers.{layer}.attention.qkv.weight"
        assert torch.cat(together).numpy().tobytes() == checkpoint.tensor(qkv).tobytes()
        for x in "qkv":  # one scale, so that nothing is quantized again where they are fused
            scale, inputs = (
                ours[f"{attention}{x}_proj.{kind}_scale"] for kind in ("weight", "input")
            )
            assert scale.shape == inputs.shape == ()
            assert scale.item() == checkpoint.scale(qkv, ScaleKind.WEIGHT)
            assert inputs.item() == checkpoint.scale(qkv, ScaleKind.INPUT)
        assert ours[f"{attention}k_proj.k_scale"].item() == 1
        assert ours[f"{attention}v_proj.v_scale"].item() == 1
    quantization = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    assert quantization["quantization"] == {
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8",
        "exclude_modules": ["lm_head", "model.embed_tokens"],
    }
    own = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (own["quant_method"], own["quant_algo"]) == ("modelopt", "FP8")
    assert own["ignore"] == quantization["quantization"]["exclude_modules"]
    assert own["producer"] == quantization["producer"]
    assert own["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}


def test_an_fp8_kv_cache_has_scales_of_at_least_one(tmp_path: Path) -> None:
    convert(NEMO, tmp_path / "out", fp8(2, precision=FP8_KV))
    for rank in (0, 1):
        tensors = load_file(tmp_path / "out" / f"rank{rank}.safetensors")
        for layer in range(4):
            scale = tensors[f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"]
            assert (scale.dtype, scale.tolist()) == (torch.float32, [1.0])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"]["kv_cache_quant_algo"] == "FP8"


@given(st.floats(2**-120, 2**120, width=32))
def test_the_table_is_torchs_conversion(amax: float) -> None:
    """BF16 numbers within ±amax agree at any scale; beyond it, the largest E4M3 number is taken."""
    scale = scale_of(amax)
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    numbers = bits[bits.abs() <= amax]
    expected = (numbers.float() / torch.tensor(scale)).to(torch.float8_e4m3fn)
    quantized = look_up(e4m3_table(scale), numbers.view(torch.uint16).numpy())
    assert quantized.tobytes() == expected.view(torch.uint8).numpy().tobytes()
    beyond = e4m3_table(scale)[[0x7F7F, 0xFF7F]].view("uint8")
    if amax < 2**110:
        assert beyond.tolist() == [0x7E, 0xFE]  # ±448


def test_amax_is_a_maximum_of_bits() -> None:
    rng = np.random.default_rng(0)
    for words in (rng.integers(0, 0x7F80, (7, 100), np.uint16), np.zeros((1, 3), np.uint16)):
        signed = words | (rng.integers(0, 2, words.shape, np.uint16) << 15)
        numbers = torch.from_numpy(signed).view(torch.bfloat16).float()
        assert bf16_from_bits(amax_bits(signed)) == numbers.abs().max().item()
    assert scale_of(0.0) == 1
    assert scale_of(E4M3_MAX) == 1


def write_nan(folder: Path) -> Path:
    path = folder / WEIGHTS / "model.decoder.layers.mlp.linear_fc1.weight" / "2.0.0"
    words = np.fromfile(path, np.uint16)
    words[777] = 0x7FC0
    words.tofile(path)
    return folder


def test_nan_has_no_scale(tmp_path: Path) -> None:
    folder = write_nan(unpack(tmp_path / "in"))
    with pytest.raises(NemotronError, match=r"linear_fc1\.weight, layer 2 holds NaN or Inf"):
        convert(folder, tmp_path / "out", fp8(2))


def test_fp8_for_the_cache_alone_is_refused(tmp_path: Path) -> None:
    options = Options(Parallel(2, 1), precision=Precision(Dtype.BF16, Dtype.FP8))
    with pytest.raises(NemotronError, match=r"needs calibrated scales .*: add --dtype fp8"):
        convert(NEMO, tmp_path / "out", options)


def test_scales_of_an_earlier_run(tp2: Path, tmp_path: Path) -> None:
    """They give the same bytes for the same file and for a copy, whose weights are read again."""
    calibration = CalibrationOptions(scales=tp2 / CALIBRATION_NAME)
    options = Options(Parallel(2, 1), precision=FP8, calibration=calibration)
    expected = read_manifest(tp2).files
    assert convert(NEMO, tmp_path / "same", options).files == expected
    assert convert(unpack(tmp_path / "copy"), tmp_path / "other", options).files == expected


DAMAGE = {
    "[]": "file: Input should be an object",
    "{": "file: Invalid JSON",
    '{"layers": []}': "data: Field required|model: Field required",
}


@pytest.mark.parametrize("content", DAMAGE)
def test_an_invalid_calibration_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    options = Options(Parallel(2, 1), precision=FP8, calibration=CalibrationOptions(scales=path))
    with pytest.raises(NemotronError, match=DAMAGE[content]):
        convert(NEMO, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["layers"].pop(), "of a model with 3 layers, this one has 4"),
        (lambda c: c["layers"][1]["linears"].pop("mlp.fc"), r"layers\.1\.linears: not those"),
        (
            lambda c: c["layers"][2]["linears"]["mlp.fc"].update(input=0),
            r"layers\.2\.linears\.mlp\.fc\.input: 0",
        ),
        (lambda c: c["layers"][2].update(key=-1), r"layers\.2\.key: .*greater than or equal to 0"),
        (lambda c: c["layers"][2].update(key=1e39), r"layers\.2\.key: .*less than or equal to 3"),
    ],
)
def test_a_calibration_of_another_model(
    tp2: Path,
    edit: object,
    message: str,
    tmp_path: Path,
) -> None:
    content = json.loads((tp2 / CALIBRATION_NAME).read_text())
    assert callable(edit)
    edit(content)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(content))
    options = Options(Parallel(2, 1), precision=FP8, calibration=CalibrationOptions(scales=path))
    with pytest.raises(NemotronError, match=message):
        convert(NEMO, tmp_path / "out", options)


def test_gamma_without_its_one_calibrates_alike(tp2: Path, tmp_path: Path) -> None:
    """A source that stores gamma itself gives the same inputs."""
    folder = edit_config(
        unpack(tmp_path / "in"),
        lambda text: text.replace("layernorm1p", "layernorm").replace(
            "layernorm_zero_centered_gamma: true", "layernorm_zero_centered_gamma: false"
        ),
    )
    for norm in (folder / WEIGHTS).glob("*layer_norm_weight/[0-9]*"):
        stored = torch.from_numpy(np.fromfile(norm, np.uint16)).view(torch.bfloat16)
        (stored.float() + 1).bfloat16().view(torch.uint16).numpy().tofile(norm)
    convert(folder, tmp_path / "out", fp8(2))
    ours, expected = (
        json.loads((path / CALIBRATION_NAME).read_text())["layers"]
        for path in (tmp_path / "out", tp2)
    )
    assert ours == expected


def test_the_first_line_and_the_manifest_speak_of_built_in_texts(tmp_path: Path) -> None:
    nemotron = str(Path(sys.executable).with_name("nemotron"))
    command = [nemotron, "convert", NEMO, "-o", tmp_path / "out", "--tp", "2", "--dtype", "fp8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    entry = read_manifest(tmp_path / "out").calibration
    assert entry is not None
    assert entry.is_built_in
    assert entry.sequences == 32
    first = done.stderr.splitlines()[0]
    assert f"this project's own texts, {entry.tokens:,} tokens" in first
    assert "--calibrate" in first


def test_texts_of_ones_own_are_no_remark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = convert(NEMO, tmp_path / "out", fp8(2)).calibration
    assert entry is not None
    assert (entry.is_built_in, entry.tokens) == (False, 8 * 64)
    assert "own texts" not in capsys.readouterr().err
