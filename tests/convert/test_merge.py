"""Adapters are merged bit by bit as they act in training, whatever layout they come in."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from nemotron_convert.source.nemo import Source
from tests.convert.adapters import (
    ALL,
    BASE,
    CANONICAL,
    FC2_WEIGHT,
    IA3_KEY,
    IA3_MLP,
    IA3_VALUE,
    LAYER_COUNT,
    LAYERS,
    QKV,
    QKV_WEIGHT,
    Tensors,
    group_rows,
    ia3,
    ia3_config,
    lora_changes,
    read_adapter,
    read_config,
    selected,
    tar,
    write_adapter,
    write_nemo2,
)

EXPECTED = json.loads((QKV.parent / "expected.json").read_text())
"""SHA-256 of each merged stack's BF16 words in C order, computed by others from the same files."""
# torch warns at every save outside a process group, even with `no_dist`.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def merged(*adapters: Path) -> Tensors:
    """Return the linear layers of the base model, stacked, as they are converted."""
    with Source.open(BASE, adapters=adapters) as source:
        return {
            name: torch.from_numpy(
                np.stack([array.read_layer(layer) for layer in range(LAYER_COUNT)])
            ).view(torch.bfloat16)
            for name, array in source.tensors.items()
            if name.startswith(LAYERS) and len(array.shape) == 3
        }


def hashes(tensors: Tensors) -> dict[str, str]:
    words = {name: tensor.view(torch.uint16).numpy() for name, tensor in tensors.items()}
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in words.items()}


@pytest.fixture(scope="module")
def base() -> Tensors:
    return merged()


@pytest.mark.parametrize("path", [QKV, ALL, CANONICAL], ids=lambda path: path.stem)
def test_every_bit_is_as_expected(path: Path, base: Tensors) -> None:
    result = merged(path)
    assert hashes(result) == hashes(base) | EXPECTED[path.stem]


@pytest.mark.parametrize("path", [ALL, CANONICAL], ids=lambda path: path.stem)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2), (8, 1), (1, 4), (4, 2)])
@pytest.mark.parametrize("prefix", ["model.", "model.module."])
def test_ranks_of_any_split(path: Path, tp: int, pp: int, prefix: str, tmp_path: Path) -> None:
    """Layers count from 0 on each stage; the rank's axis is split, too."""
    tensors, config = read_adapter(path), read_config(path)
    folder = write_adapter(tmp_path / "lora", tensors, config, tp=tp, pp=pp, prefix=prefix)
    assert EXPECTED[path.stem].items() <= hashes(merged(folder)).items()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_archives(mode: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", read_adapter(ALL), read_config(ALL), tp=2, pp=2)
    path = tar(folder, tmp_path / "lora.nemo", mode)
    assert EXPECTED[ALL.stem].items() <= hashes(merged(path)).items()


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("path", [ALL, CANONICAL], ids=lambda path: path.stem)
def test_nemo_2(path: Path, stacked: bool, tmp_path: Path) -> None:
    name = "canonical_lora.CanonicalLoRA" if path == CANONICAL else "lora.LoRA"
    transform = {"_target_": f"nemo.collections.llm.peft.{name}", "dim": 8, "alpha": 8}
    folder = write_nemo2(tmp_path / "lora", read_adapter(path), transform, stacked=stacked)
    assert EXPECTED[path.stem].items() <= hashes(merged(folder)).items()


def test_selected_layers_count_from_1(base: Tensors, tmp_path: Path) -> None:
    config = read_config(QKV)
    config["peft"]["lora_tuning"]["layer_selection"] = [2, 4]
    tensors = selected(read_adapter(QKV), (1, 3))
    folder = write_adapter(tmp_path / "lora", tensors, config, pp=2)
    result, whole = merged(folder)[QKV_WEIGHT], merged(QKV)[QKV_WEIGHT]
    for layer in range(LAYER_COUNT):
        assert torch.equal(result[layer], (whole if layer in (1, 3) else base[QKV_WEIGHT])[layer])


@pytest.mark.parametrize(
    ("change", "scale"),
    [
        ({"alpha": 16}, 2.0),
        ({"alpha": None}, 1.0),
        ({"alpha": "${.adapter_dim}"}, 1.0),
        ({"alpha": "${model.peft.lora_tuning.adapter_dim}"}, 1.0),
        ({"alpha": 4.0}, 0.5),
        ({"target_modules": "attention_qkv"}, 2.0),
        ({"target_modules": None}, 2.0),
    ],
)
def test_the_scale_is_alpha_over_rank(
    change: dict[str, Any], scale: float, base: Tensors, tmp_path: Path
) -> None:
    """Without alpha, as before NeMo 2.0, it is 1; without targets it is those of that time."""
    config = read_config(QKV)
    tuning = config["peft"]["lora_tuning"]
    tuning |= change
    for key in [key for key, value in tuning.items() if value is None]:
        del tuning[key]
    folder = write_adapter(tmp_path / "lora", read_adapter(QKV), config)
    expected = base[QKV_WEIGHT].float() + lora_changes(read_adapter(QKV), scale)[QKV_WEIGHT]
    assert torch.equal(merged(folder)[QKV_WEIGHT], expected.bfloat16())


def with_ia3(weights: Tensors, tensors: Tensors) -> Tensors:
    """Return weights in F32, whose keys, values and MLP inputs are multiplied."""
    result = {name: weight.clone() for name, weight in weights.items()}
    for layer in range(LAYER_COUNT):
        for kind, name in ((1, IA3_KEY), (2, IA3_VALUE)):
            factors = tensors[f"{LAYERS}{layer}.{name}"]
            result[QKV_WEIGHT][layer, group_rows(kind)] *= factors[:, None]
        result[FC2_WEIGHT][layer] *= tensors[f"{LAYERS}{layer}.{IA3_MLP}"]
    return result


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_ia3(tp: int, pp: int, base: Tensors, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "ia3", ia3(), ia3_config(), tp=tp, pp=pp)
    expected = with_ia3({name: weight.float() for name, weight in base.items()}, ia3())
    result = merged(folder)
    for name, weight in expected.items():
        assert torch.equal(result[name], weight.bfloat16()), name
    changed = {name for name in base if not torch.equal(result[name], base[name])}
    assert changed == {QKV_WEIGHT, FC2_WEIGHT}


@pytest.mark.parametrize("ia3_first", [True, False])
def test_several_adapters_in_order(ia3_first: bool, base: Tensors, tmp_path: Path) -> None:
    """They are rounded once, after the last."""
    folder = write_adapter(tmp_path / "ia3", ia3(), ia3_config())
    weights = {name: weight.double() for name, weight in base.items()}
    change = lora_changes(read_adapter(QKV), 2.0)[QKV_WEIGHT].double()
    if ia3_first:
        weights = with_ia3(weights, ia3())
        weights[QKV_WEIGHT] += change
    else:
        weights[QKV_WEIGHT] += change
        weights = with_ia3(weights, ia3())
    paths = (folder, QKV) if ia3_first else (QKV, folder)
    result = merged(*paths)
    for name, weight in weights.items():
        assert torch.equal(result[name], weight.float().bfloat16()), name


def test_blocks_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With factors whose products are not exact in F32."""
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in read_adapter(ALL).items()
    }
    folder = write_adapter(tmp_path / "lora", tensors, read_config(ALL))
    with Source.open(BASE, adapters=[folder]) as source:
        array = source.tensors[FC2_WEIGHT]
        whole = np.concatenate([array.read(c, 0, c.rows) for c in array.layer_chunks(2)])
        rows = [array.read(c, row, 1) for c in array.layer_chunks(2) for row in range(c.rows)]
    assert np.array_equal(whole, np.concatenate(rows))
    assert np.isfinite(whole.view(ml_dtypes.bfloat16).astype(np.float32)).all()
