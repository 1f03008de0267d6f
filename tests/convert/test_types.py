"""Weights that are not stored as BF16: rounded as torch rounds, with a count of what was lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.manifest import read_manifest
from nemotron_core.errors import NemotronError
from tests.convert.nemo import WEIGHTS, edit_zarray, unpack

TENSOR = "model.output_layer.weight"
TP1 = Options(Parallel(1, 1))


def store(folder: Path, numbers: np.ndarray, dtype: str) -> None:
    edit_zarray(folder, TENSOR, dtype=dtype)
    numbers.astype(dtype).tofile(folder / WEIGHTS / TENSOR / "0.0")


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
def test_numbers_are_rounded_as_torch_does(dtype: str, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    numbers = np.random.default_rng(3).normal(0, 0.3, (512, 128))
    numbers[0, :3] = (0, -0.0, 6e-8)  # the last is denormal in F16 and normal in BF16
    store(folder, numbers, dtype)
    manifest = convert(folder, tmp_path / "out", TP1)
    actual = load_file(tmp_path / "out" / "rank0.safetensors")["lm_head.weight"]
    expected = torch.from_numpy(numbers.astype(dtype)).bfloat16()
    assert torch.equal(actual.view(torch.uint16), expected.view(torch.uint16))
    assert manifest.source_dtypes == ["BF16", {"<f2": "F16", "<f4": "F32"}[dtype]]
    assert (manifest.overflow, manifest.underflow, manifest.nonfinite) == ({}, {}, [])
    with pytest.raises(NemotronError, match=r"the weights are BF16 and F.*without --strict"):
        convert(folder, tmp_path / "strict", Options(Parallel(1, 1), strict=True))
    assert not (tmp_path / "strict").exists()


def test_values_that_change_their_class_are_counted(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    numbers = np.ones((512, 128))
    numbers[7, :2] = 3.4e38  # above BF16's largest number, below that of F32
    numbers[300, 5] = 1e-44
    numbers[301, :3] = -1e-45
    store(folder, numbers, "<f4")
    convert(folder, tmp_path / "out", TP1)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.overflow == {TENSOR: 2}
    assert manifest.underflow == {TENSOR: 4}
    assert manifest.nonfinite == [TENSOR]
