"""`nemotron verify` derives what adapters do by itself and names what was merged wrongly."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_convert.calibration.options import CalibrationOptions
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Dtype, Precision
from nemotron_convert.verification.verifier import verify
from tests.convert.adapters import (
    ALL,
    BASE,
    CANONICAL,
    LAYERS,
    QKV,
    Tensors,
    group_rows,
    ia3,
    ia3_config,
    read_adapter,
    read_config,
    write_adapter,
)
from tests.convert.test_adapters import nemotron

FP8 = Precision(Dtype.FP8)
CALIBRATION = CalibrationOptions(devices="cpu")


def checkpoint(
    folder: Path, *adapters: Path, tp: int = 2, pp: int = 1, precision: Precision | None = None
) -> Path:
    options = Options(
        Parallel(tp, pp),
        adapters=adapters,
        precision=precision or Precision(),
        calibration=CALIBRATION,
    )
    convert(BASE, folder, options)
    return folder


@pytest.mark.parametrize("precision", [Precision(), FP8], ids=["bf16", "fp8"])
@pytest.mark.parametrize("path", [ALL, CANONICAL], ids=lambda path: path.stem)
def test_a_right_merge_is_safe(path: Path, precision: Precision, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "out", path, tp=4, pp=2, precision=precision)
    assert verify(folder, BASE, adapters=[path]).faults == []


def test_several_adapters_are_safe_in_their_order(tmp_path: Path) -> None:
    scalers = write_adapter(tmp_path / "ia3", ia3(), ia3_config(), tp=2)
    folder = checkpoint(tmp_path / "out", QKV, scalers, tp=16)
    assert verify(folder, BASE, adapters=[QKV, scalers]).faults == []
    swapped = verify(folder, BASE, adapters=[scalers, QKV])
    assert "merged with lora_qkv_tp1.nemo" in str(swapped.faults[0])
    assert any("attention.qkv.weight (K)" in str(fault) for fault in swapped.faults[1:])


Change = Callable[[Tensors, dict[str, Any]], object]


def small(tensors: Tensors) -> None:
    """Make the effect of a LoRA small beside the rounding to FP8."""
    for name in tensors:
        if name.endswith("linear_out.weight"):
            tensors[name] = tensors[name] / 8


def twice_the_scale(_: Tensors, config: dict[str, Any]) -> None:
    config["peft"]["lora_tuning"]["alpha"] *= 2


def no_alpha(_: Tensors, config: dict[str, Any]) -> None:
    """What NeMo's own merge script does."""
    del config["peft"]["lora_tuning"]["alpha"]


def swap_queries_and_keys(tensors: Tensors, _: dict[str, Any]) -> None:
    queries = group_rows(0).view(8, 2, 16)[:, 0].flatten()
    for name, tensor in tensors.items():
        if name.endswith("linear_out.weight"):
            tensors[name] = tensor.clone()
            tensors[name][queries], tensors[name][group_rows(1)] = (
                tensor[group_rows(1)],
                tensor[queries],
            )


def of_another_layer(tensors: Tensors, _: dict[str, Any]) -> None:
    for name, tensor in dict(tensors).items():
        layer, _, rest = name.removeprefix(LAYERS).partition(".")
        tensors[f"{LAYERS}{(int(layer) + 1) % 4}.{rest}"] = tensor


WRONG: dict[str, tuple[Change, str]] = {
    "wrong scale": (
        twice_the_scale,
        r"layer 0, rank 0: .*qkv\.weight \(Q\): relative error .*holds (1\.9|2\.0).* of the",
    ),
    "no alpha": (no_alpha, r"\(Q\): relative error .*holds 0\.(4|5)\d of the adapters"),
    "queries and keys swapped": (swap_queries_and_keys, r"qkv\.weight \((Q|K)\): .*of the adapt"),
    "another layer": (of_another_layer, r"layer 0, rank 0: .*holds -?0\.\d\d of the adapters"),
}


@pytest.mark.parametrize("precision", [Precision(), FP8], ids=["bf16", "fp8"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_merge_is_named(name: str, precision: Precision, tmp_path: Path) -> None:
    """The effect is small: a hundredth of the layer's result or so."""
    change, message = WRONG[name]
    tensors, config = read_adapter(QKV), read_config(QKV)
    small(tensors)
    right = write_adapter(tmp_path / "lora", tensors, config)
    assert verify(
        checkpoint(tmp_path / "right", right, precision=precision), BASE, adapters=[right]
    ).is_safe
    change(tensors, config)
    wrong = write_adapter(tmp_path / "wrong", tensors, config)
    folder = checkpoint(tmp_path / "out", wrong, precision=precision)
    faults = [str(fault) for fault in verify(folder, BASE, adapters=[right]).faults]
    assert faults[0].startswith("manifest.json: adapters")
    assert any(re.search(message, fault) for fault in faults[1:]), faults
    assert verify(folder, BASE, adapters=[wrong]).is_safe


def test_the_command(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "out", QKV)
    done = nemotron("verify", folder, "--base", BASE, "--against", QKV, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    done = nemotron("verify", folder, "--against", BASE, cwd=tmp_path)
    assert done.returncode == 1
    assert "merged with lora_qkv_tp1.nemo" in done.stdout
    assert "given: none" in done.stdout
