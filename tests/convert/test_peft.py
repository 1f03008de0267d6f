"""PEFT folders, loaded by peft itself, give the logits of the merged model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from nemotron_convert.convert import Options, convert, convert_to_peft
from nemotron_convert.inspect import inspect_checkpoint
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import Format
from nemotron_core.errors import NemotronError
from nemotron_engine.adapters.peft_folder import check_peft_folder
from tests.convert.adapters import (
    ALL,
    BASE,
    CANONICAL,
    HEAD,
    QKV,
    Tensors,
    ia3,
    ia3_config,
    read_adapter,
    read_config,
    selected,
    write_adapter,
)
from tests.convert.nemo import NEMO as OTHER_BASE
from tests.convert.test_adapters import FIRST, nemotron
from tests.tiny_nemotron.reference import load_hf_model

# peft asks for an attribute that this transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

PROMPT = [4, 1366, 1330, 349, 498, 24, 24, 5, 911, 277, 24, 459, 363, 355, 1334, 24, 5, 1341, 1321,
          882, 24]  # fmt: skip
TOP5 = {1348: 19.0641, 208: 12.595, 1375: 11.5959, 1373: 11.4181, 1366: 10.8726}
"""Largest logits after PROMPT of the base model with the LoRA QKV merged, computed by others."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft") / "base"
    convert(BASE, folder, Options(Parallel(1, 1), Format.HF))
    return folder


def logits(base: Path, adapter: Path | None = None) -> Tensor:
    model = load_hf_model(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.inference_mode():
        result: Tensor = model(torch.tensor([PROMPT])).logits[0]
    return result


def merged_logits(folder: Path, *adapters: Path) -> Tensor:
    convert(BASE, folder, Options(Parallel(1, 1), Format.HF, adapters=adapters))
    return logits(folder)


@pytest.mark.parametrize("path", [QKV, ALL, CANONICAL], ids=lambda path: path.stem)
def test_peft_agrees_with_the_merged_model(path: Path, base: Path, tmp_path: Path) -> None:
    """They differ by the rounding of the merged weights to BF16."""
    manifest = convert_to_peft(path, tmp_path / "lora", BASE)
    check_peft_folder(tmp_path / "lora", base, max_rank=8)  # an engine would load it
    merged, beside = merged_logits(tmp_path / "merged", path), logits(base, tmp_path / "lora")
    effect = float((merged - logits(base)).abs().max())
    assert float((merged - beside).abs().max()) < 0.03 < effect / 10
    assert manifest.dtype == ("bf16" if path == ALL else "f32")
    if path == QKV:
        for token, expected in TOP5.items():
            assert float(merged[-1, token]) == pytest.approx(expected, abs=2e-4)
            assert float(beside[-1, token]) == pytest.approx(expected, abs=0.02)


def test_selected_layers(base: Path, tmp_path: Path) -> None:
    config = read_config(ALL)
    config["peft"]["lora_tuning"] |= {"layer_selection": [2, 4], "alpha": 4}
    folder = write_adapter(tmp_path / "lora", selected(read_adapter(ALL), (1, 3)), config, pp=2)
    convert_to_peft(folder, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["layers_to_transform"] == [1, 3]
    assert (written["r"], written["lora_alpha"]) == (8, 4.0)
    assert written["base_model_name_or_path"] == "/models/base.nemo"
    expected = merged_logits(tmp_path / "merged", folder)
    assert float((logits(base, tmp_path / "out") - expected).abs().max()) < 0.03


def test_modules_in_different_layers_are_named_in_full(base: Path, tmp_path: Path) -> None:
    """NeMo 2's wildcards make such adapters."""
    first, second = ("self_attention.adapter_layer.lora_kqv", "mlp.adapter_layer.lora_4htoh")
    tensors: Tensors = {
        name: tensor
        for name, tensor in read_adapter(ALL).items()
        if (first in name and ".layers.0." in name) or (second in name and ".layers.2." in name)
    }
    config = read_config(ALL)
    config["peft"]["lora_tuning"]["target_modules"] = ["*.layers.0.*.attention_qkv", "*.mlp_fc2"]
    folder = write_adapter(tmp_path / "lora", tensors, config)
    convert_to_peft(folder, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert "model.layers.2.mlp.down_proj" in written["target_modules"]
    assert len(written["target_modules"]) == 4
    expected = merged_logits(tmp_path / "merged", folder)
    assert float((logits(base, tmp_path / "out") - expected).abs().max()) < 0.03


def test_the_command(tmp_path: Path) -> None:
    done = nemotron("convert", QKV, "-o", "out", "--format", "peft", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out: peft f32, rank 8, alpha 16" in done.stdout
    report = inspect_checkpoint(tmp_path / "out", check=True)
    assert (report.format, report.adapters[0].partition(":")[0]) == ("peft", QKV.name)
    with pytest.raises(NemotronError, match="of the format peft"):
        Checkpoint.open(tmp_path / "out")
    done = nemotron("convert", QKV, "-o", "out", "--format", "peft", cwd=tmp_path)
    assert done.returncode == 1
    assert "the output exists" in done.stderr
    extra = ("--dtype", "fp8", "--tp", "2", "--strict", "--ignore-tensor", "x", "--wait", "1")
    done = nemotron("convert", QKV, "-o", "o2", "--format", "peft", *extra, cwd=tmp_path)
    assert done.returncode == 1
    assert "never FP8 [--tp, --wait, --strict, --ignore-tensor, --dtype]" in done.stderr
    done = nemotron("convert", QKV, ALL, "-o", "o3", "--format", "peft", cwd=tmp_path)
    assert done.returncode == 1
    assert "2 adapters" in done.stderr


def test_what_has_no_such_form(tmp_path: Path) -> None:
    scalers = write_adapter(tmp_path / "ia3", ia3(), ia3_config())
    with pytest.raises(NemotronError, match=r"only a LoRA.*merge it into its base"):
        convert_to_peft(scalers, tmp_path / "out")
    with pytest.raises(NemotronError, match="this is a base model, which is whole"):
        convert_to_peft(BASE, tmp_path / "out")
    with pytest.raises(NemotronError, match="not a whole model"):
        convert_to_peft(QKV, tmp_path / "out", ALL)
    with pytest.raises(NemotronError, match="hidden_size is 256, the base model has 128"):
        convert_to_peft(QKV, tmp_path / "out", OTHER_BASE)
    assert not list(tmp_path.glob("out*"))


def test_factors_of_two_types_are_not_rounded(tmp_path: Path) -> None:
    tensors = read_adapter(QKV)
    for name in tensors:
        tensors[name] = tensors[name].bfloat16() if "linear_in" in name else tensors[name] / 3
    folder = write_adapter(tmp_path / "lora", tensors, read_config(QKV))
    manifest = convert_to_peft(folder, tmp_path / "out")
    assert (manifest.dtype, manifest.source_dtypes) == ("f32", ["BF16", "F32"])
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    query = written["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    fused = tensors[FIRST + "linear_out.weight"]
    assert torch.equal(query[:HEAD], fused[:HEAD])
