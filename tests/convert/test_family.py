"""Every shape of the family: a random model of it goes through all formats and keeps its logits.

The shapes have two layers, a vocabulary of 1,024 and an eighth of the true widths (hidden, MLP and
head size), so that they fit beside other tests; numbers of heads and groups are the true ones.
`test_true_widths` takes the 4B in its true widths; the 8B and the 15B, which take a minute, are in
tests/loaders.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemotron_convert.convert import Options, convert
from nemotron_convert.inspect import inspect
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_core.family import FAMILY
from nemotron_core.family import VOCABULARY as VOCABULARY_ROWS
from nemotron_core.model_config import ModelConfig
from tests.convert.expected import rank_tensors
from tests.convert.hf_folders import random_folder
from tests.convert.test_convert import ranks, same_bits

VOCABULARY = 1024
SCALE = 8
IDS = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(3))


def shrunk(shape: ModelConfig) -> ModelConfig:
    return replace(
        shape,
        hidden_size=shape.hidden_size // SCALE,
        intermediate_size=shape.intermediate_size // SCALE,
        head_size=shape.head_size // SCALE,
    )


def logits(folder: Path) -> torch.Tensor:
    """Return transformers' logits in F32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        result: torch.Tensor = model(IDS).logits
    return result


@pytest.mark.parametrize("name", FAMILY)
def test_every_shape_keeps_its_weights_and_its_logits(name: str, tmp_path: Path) -> None:
    shape = shrunk(FAMILY[name].config)
    model = random_folder(tmp_path / "in", shape, layers=2, vocab=VOCABULARY)
    report = inspect(tmp_path / "in")
    assert (report.convertible, report.layout, report.dtype) == (True, "safetensors", "BF16")
    assert report.config["head_size"] == shape.head_size
    weights = dict(model.state_dict())
    for tp, pp in ((1, 1), (2, 2), (8, 1)):
        convert(tmp_path / "in", tmp_path / f"tp{tp}", Options(Parallel(tp, pp)))
        expected = rank_tensors(weights, model.config, tp, pp)
        for actual, tensors in zip(ranks(tmp_path / f"tp{tp}"), expected, strict=True):
            same_bits(actual, {key: tensor.contiguous() for key, tensor in tensors.items()})
    convert(tmp_path / "in", tmp_path / "hf", Options(Parallel(1, 1), Format.HF))
    assert torch.equal(logits(tmp_path / "hf"), logits(tmp_path / "in"))


def test_true_widths(tmp_path: Path) -> None:
    keeps_its_logits_in_true_widths("nemotron-mini-4b-instruct", tmp_path)


def keeps_its_logits_in_true_widths(name: str, tmp_path: Path) -> None:
    shape = FAMILY[name].config
    random_folder(tmp_path / "in", shape, layers=2, vocab=VOCABULARY)
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    convert(tmp_path / "in", tmp_path / "hf", Options(Parallel(1, 1), Format.HF))
    assert torch.equal(logits(tmp_path / "hf"), logits(tmp_path / "in"))


@pytest.mark.parametrize("name", FAMILY)
def test_a_shape_has_the_parameters_of_its_name(name: str) -> None:
    shape = FAMILY[name].config
    width, heads = shape.hidden_size, shape.num_heads * shape.head_size
    layer = width * (shape.qkv_rows + heads + 2 * shape.intermediate_size)
    total = shape.num_layers * layer + 2 * VOCABULARY_ROWS * width
    billions = re.search(r"-(\d+)b", name)
    assert billions is not None
    assert total == pytest.approx(float(billions[1]) * 1e9, rel=0.07)
