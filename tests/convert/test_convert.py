"""Checkpoints compared bit for bit with ModelOpt's own files and with transformers' weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig

from bench.measurements.random_nemo import random_tokenizer
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.manifest import changed_files, read_manifest
from nemotron_core.errors import NemotronError
from tests.convert.expected import rank_tensors
from tests.convert.nemo import GOLDEN, NEMO, edit_config, pack, rechunk, unpack

SPLITS = [(tp, pp) for tp in (1, 2, 4, 8, 16) for pp in (1, 2, 3)]


def same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == torch.bfloat16, name
        assert actual[name].shape == tensor.shape, name
        assert torch.equal(actual[name].view(torch.uint16), tensor.view(torch.uint16)), name


def ranks(folder: Path) -> list[dict[str, torch.Tensor]]:
    count = len(list(folder.glob("rank*.safetensors")))
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(count)]


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_every_bit_is_modelopts(tp: int, tmp_path: Path) -> None:
    convert(NEMO, tmp_path / "out", Options(Parallel(tp, 1)))
    expected = ranks(GOLDEN / f"modelopt_bf16_tp{tp}")
    assert len(expected) == tp
    for actual, golden in zip(ranks(tmp_path / "out"), expected, strict=True):
        same_bits(actual, golden)


@pytest.mark.parametrize(("tp", "pp"), SPLITS)
def test_every_split_holds_transformers_weights(tp: int, pp: int, tmp_path: Path) -> None:
    convert(NEMO, tmp_path / "out", Options(Parallel(tp, pp)))
    config = AutoConfig.from_pretrained(GOLDEN / "hf_tiny")
    weights = load_file(GOLDEN / "hf_tiny" / "model.safetensors")
    expected = rank_tensors(weights, config, tp, pp)
    assert len(expected) == tp * pp
    for actual, tensors in zip(ranks(tmp_path / "out"), expected, strict=True):
        same_bits(actual, {name: tensor.contiguous() for name, tensor in tensors.items()})


@pytest.mark.parametrize(("tp", "pp"), SPLITS)
def test_a_checkpoint_reads_back_unsharded(tp: int, pp: int, tmp_path: Path) -> None:
    convert(NEMO, tmp_path / "out", Options(Parallel(tp, pp)))
    checkpoint = Checkpoint.open(tmp_path / "out")
    checkpoint.check_hashes()
    for name, tensor in load_file(GOLDEN / "modelopt_bf16_tp1" / "rank0.safetensors").items():
        whole = torch.from_numpy(checkpoint.tensor(name).view("uint16"))
        assert torch.equal(whole, tensor.view(torch.uint16)), name


@pytest.mark.parametrize("container", ["folder", "tar", "gzip", "folder in tar"])
def test_every_container_gives_the_same_bytes(container: str, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in" / "model")
    source = {
        "folder": lambda: folder,
        "tar": lambda: pack(folder, tmp_path / "model.nemo"),
        "gzip": lambda: pack(folder, tmp_path / "model.nemo", "w:gz"),
        "folder in tar": lambda: pack(folder.parent, tmp_path / "model.nemo"),
    }[container]()
    convert(NEMO, tmp_path / "expected", Options(Parallel(4, 2)))
    convert(source, tmp_path / "out", Options(Parallel(4, 2), jobs=3))
    expected = read_manifest(tmp_path / "expected")
    assert read_manifest(tmp_path / "out").files == expected.files
    assert changed_files(tmp_path / "out", expected) == []


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_the_grid_is_read_never_assumed(data: st.DataObject, tmp_path: Path) -> None:
    """Any chunk grid gives the same checkpoint, also one that no TP would produce."""
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)
    folder = unpack(tmp_path / "in")
    layers = "model.decoder.layers."
    for tensor, shape in (
        (layers + "self_attention.linear_qkv.weight", (4, 256, 128)),
        (layers + "mlp.linear_fc2.weight", (4, 128, 512)),
        (layers + "mlp.linear_fc1.layer_norm_weight", (4, 128)),
        ("model.output_layer.weight", (512, 128)),
        ("model.decoder.final_layernorm.weight", (128,)),
    ):
        grid = tuple(data.draw(st.integers(max(1, n // 5), n)) for n in shape)
        rechunk(folder, tensor, grid)
    tp = data.draw(st.sampled_from([1, 2, 8, 16]))
    convert(folder, tmp_path / "out", Options(Parallel(tp, 1)))
    convert(NEMO, tmp_path / "expected", Options(Parallel(tp, 1)))
    assert read_manifest(tmp_path / "out").files == read_manifest(tmp_path / "expected").files


def test_a_vocabulary_that_tp_does_not_divide_is_padded_with_zero_rows(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    next(folder.glob("*.model")).write_bytes(random_tokenizer(509))
    for tensor in ("model.embedding.word_embeddings.weight", "model.output_layer.weight"):
        path = folder / "model_weights" / tensor
        words = (path / "0.0").read_bytes()[: 509 * 128 * 2]
        (path / "0.0").write_bytes(words)
        meta = (path / ".zarray").read_text()
        (path / ".zarray").write_text(meta.replace("512", "509"))
    convert(folder, tmp_path / "out", Options(Parallel(8, 1)))
    whole = load_file(GOLDEN / "hf_tiny" / "model.safetensors")["lm_head.weight"][:509]
    rows = torch.cat([rank["lm_head.weight"] for rank in ranks(tmp_path / "out")])
    assert rows.shape == (512, 128)
    assert torch.equal(rows[:509], whole)
    assert not rows[509:].any()
    assert Checkpoint.open(tmp_path / "out").tensor("lm_head.weight").shape == (509, 128)


def test_gamma_is_taken_as_it_is_where_the_norm_is_not_centered(tmp_path: Path) -> None:
    folder = edit_config(
        unpack(tmp_path / "in"),
        lambda text: text.replace("layernorm1p", "layernorm").replace(
            "zero_centered_gamma: true", "zero_centered_gamma: false"
        ),
    )
    convert(folder, tmp_path / "out", Options(Parallel(1, 1)))
    gamma = load_file(GOLDEN / "hf_tiny" / "model.safetensors")["model.norm.weight"]
    assert torch.equal(ranks(tmp_path / "out")[0]["transformer.ln_f.weight"], gamma)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC1])
def test_nan_and_inf_are_named_or_refused(bits: int, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    name = "model.decoder.layers.mlp.linear_fc1.weight"
    path = folder / "model_weights" / name / "2.0.0"
    words = np.fromfile(path, np.uint16)
    words[777] = bits
    words.tofile(path)
    manifest = convert(folder, tmp_path / "out", Options(Parallel(8, 1)))
    assert manifest.nonfinite == [f"{name}, layer 2"]
    assert read_manifest(tmp_path / "out") == manifest
    with pytest.raises(NemotronError, match=f"tensor {name}, layer 2 holds NaN or Inf"):
        convert(folder, tmp_path / "strict", Options(Parallel(8, 1), strict=True))
    assert not (tmp_path / "strict").exists()
