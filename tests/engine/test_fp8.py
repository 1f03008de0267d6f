"""FP8 on the CPU engine: it computes with the checkpoint's numbers, and answers stay correct."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.measurements.fp8_accuracy import Accuracy, measure_accuracy
from bench.measurements.fp8_compare import whole_divergence
from nemotron_build.engine_folder import build_engine
from nemotron_build.openvino_model import build_model
from nemotron_build.profile import Profile
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.fp8 import E4M3_MAX
from nemotron_convert.target.layout import ScaleKind
from nemotron_core.openvino import openvino
from nemotron_core.text import Tokenizer
from nemotron_engine.adapters import load_adapter
from tests.engine.requests import Engine
from tests.engine.test_openvino import exact_fraction
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.tiny_nemotron.reference import load_hf_model

LINEARS = {
    "q_proj": ("attention.qkv", 0),
    "k_proj": ("attention.qkv", 1),
    "v_proj": ("attention.qkv", 2),
    "o_proj": ("attention.dense", 0),
    "up_proj": ("mlp.fc", 0),
    "down_proj": ("mlp.proj", 0),
}


def test_fp8_keeps_the_answers(
    checkpoint_fp8: Path,
    cpu_profile: Profile,
    answers: list[ExactAnswer],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    build_engine(checkpoint_fp8, tmp_path / "engine", cpu_profile)
    engine = Engine(load_adapter("cpu", tmp_path / "engine"))
    assert exact_fraction(engine, answers, tokenizer) >= 0.95


class Fp8Linear(torch.nn.Module):
    """TensorRT-LLM's linear layer: E4M3 weight times E4M3 input times both scales."""

    def __init__(self, weight: torch.Tensor, weight_scale: float, input_scale: float) -> None:
        super().__init__()
        self.weight, self.scales = weight, (weight_scale, input_scale)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        weight_scale, input_scale = self.scales
        scaled = (values / input_scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        return scaled.float() @ self.weight.T * (weight_scale * input_scale)


def test_the_graph_computes_with_the_checkpoints_numbers(
    checkpoint_fp8: Path, answers: list[ExactAnswer], tokenizer: Tokenizer
) -> None:
    """Against transformers with its linear layers replaced by the same numbers, in float32.

    A rounding to E4M3 that falls to the other side moves the result far more than F32's own
    rounding does, so the bound is wide, and far below what a wrong scale would do.
    """
    checkpoint = Checkpoint.open(checkpoint_fp8)
    model = load_hf_model()
    config = model.config
    for path, module in list(model.named_modules()):
        last = path.rpartition(".")[2]
        if last not in LINEARS:
            continue
        linear, part = LINEARS[last]
        name = f"transformer.layers.{path.split('.')[2]}.{linear}.weight"
        stored = checkpoint.tensor(name).astype(np.float32)
        if linear == "attention.qkv":
            heads, groups = config.num_attention_heads, config.num_key_value_heads
            size = config.head_dim
            borders = (heads * size, (heads + groups) * size)
            stored = np.split(stored, borders)[part]
        scales = (checkpoint.scale(name, kind) for kind in (ScaleKind.WEIGHT, ScaleKind.INPUT))
        model.get_submodule(path.rpartition(".")[0]).register_module(
            last, Fp8Linear(torch.from_numpy(stored), *scales)
        )
        assert module.weight.shape == stored.shape
    graph = openvino.Core().compile_model(
        build_model(checkpoint, "f32"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for exact in answers[::60]:
        ids = [*prompt_ids(tokenizer, exact.question.messages), *exact.token_ids]
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        request = graph.create_infer_request()
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        log_probs = torch.from_numpy(request.infer(feeds)["logits"][0].copy()).log_softmax(-1)
        assert (log_probs.argmax(-1) == expected.argmax(-1)).float().mean() >= 0.95
        chosen = torch.tensor(ids[1:])[:, None]
        difference = log_probs[:-1].gather(1, chosen) - expected[:-1].gather(1, chosen)
        assert difference.abs().mean() < 0.05


@pytest.fixture(scope="module")
def accuracies(checkpoint_tp8: Path, checkpoint_fp8: Path) -> list[Accuracy]:
    return [measure_accuracy(folder, "bf16") for folder in (checkpoint_tp8, checkpoint_fp8)]


def test_log_probability_beside_bf16(accuracies: list[Accuracy]) -> None:
    bf16, fp8 = accuracies
    assert bf16.tokens == fp8.tokens > 5000
    assert fp8.exact_top1 >= 0.98
    assert abs(fp8.mean_log_prob - bf16.mean_log_prob) < 0.02


def test_the_divergence_over_the_vocabulary(
    checkpoint_tp8: Path,
    checkpoint_fp8: Path,
    answers: list[ExactAnswer],
    tokenizer: Tokenizer,
) -> None:
    texts = [
        [*prompt_ids(tokenizer, exact.question.messages), *exact.token_ids]
        for exact in answers[::80]
    ]
    assert whole_divergence((checkpoint_tp8, checkpoint_tp8), texts) == (0, 1)
    mean_kl, top1 = whole_divergence((checkpoint_tp8, checkpoint_fp8), texts)
    assert 1e-6 < mean_kl < 0.01
    assert 0.95 < top1 <= 1
