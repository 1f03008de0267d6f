"""The tensor map applied to a model: shapes on each rank, stages, order."""

from __future__ import annotations

import pytest

from nemotron_convert.shards import Parallel
from nemotron_convert.tensor_map import (
    HF_MAP,
    LAYERS,
    LINEARS,
    TENSOR_MAP,
    TensorRule,
    in_data_order,
    placements,
    rule_shape,
)
from tests.convert.test_shards import model

CONFIG = model(8, 4, head_size=3, ffn=48)
VOCAB = 50


def rule(target: str, rules: tuple[TensorRule, ...] = TENSOR_MAP) -> TensorRule:
    (match,) = (rule for rule in rules if rule.target.endswith(target))
    return match


@pytest.mark.parametrize(
    ("target", "source_shape", "tp2", "tp8"),
    [
        ("vocab_embedding.weight", (50, 24), (25, 24), (7, 24)),
        ("lm_head.weight", (50, 24), (25, 24), (7, 24)),
        ("attention.qkv.weight", (48, 24), (24, 24), (9, 24)),
        ("attention.dense.weight", (24, 24), (24, 12), (24, 3)),
        ("mlp.fc.weight", (48, 24), (24, 24), (6, 24)),
        ("mlp.proj.weight", (24, 48), (24, 24), (24, 6)),
        ("input_layernorm.bias", (1, 24), (24,), (24,)),
        ("ln_f.weight", (1, 24), (24,), (24,)),
    ],
)
def test_shapes_on_a_rank(
    target: str, source_shape: tuple[int, int], tp2: tuple[int, ...], tp8: tuple[int, ...]
) -> None:
    for tp, rank_shape in ((2, tp2), (8, tp8)):
        shape = rule_shape(rule(target), CONFIG, VOCAB, tp)
        assert (shape.rows, shape.columns) == source_shape
        assert shape.rank_shape == rank_shape
        for block in shape.blocks:
            assert block.rank_row + block.rows <= (rank_shape[0] if len(rank_shape) == 2 else 1)
            assert block.columns == rank_shape[-1]


@pytest.mark.parametrize(("name", "rows"), [("q_proj", 24), ("k_proj", 12), ("v_proj", 12)])
def test_hugging_faces_matrices_take_all_heads_of_a_kind(name: str, rows: int) -> None:
    shape = rule_shape(rule(name + ".weight", HF_MAP), CONFIG, VOCAB, 1)
    assert shape.rank_shape == (rows, 24)
    assert sum(block.rows for block in shape.blocks) == rows


def test_placements_count_layers_from_0_on_each_stage() -> None:
    """7 layers on 3 stages are 3, 2 and 2."""
    parallel = Parallel(2, 3)
    norm = "transformer.layers.{}.input_layernorm.bias"
    assert list(placements(rule("input_layernorm.bias"), parallel, 7)) == [
        (stage, layer, norm.format(local_layer))
        for stage, layer, local_layer in (
            *((0, 0, 0), (0, 1, 1), (0, 2, 2)),
            *((1, 3, 0), (1, 4, 1)),
            *((2, 5, 0), (2, 6, 1)),
        )
    ]
    embedding, head = rule("vocab_embedding.weight"), rule("lm_head.weight")
    assert list(placements(embedding, parallel, 7)) == [(0, 0, embedding.target)]
    assert list(placements(head, parallel, 7)) == [(2, 0, head.target)]


def test_tensors_are_in_the_order_of_the_data() -> None:
    order = list(in_data_order(TENSOR_MAP, 2))
    assert len(order) == 1 + 2 * 8 + 3
    assert [layer for _, layer in order] == [0] + [0] * 8 + [1] * 8 + [0] * 3
    assert order[0][0] is rule("vocab_embedding.weight")
    assert [rule.target for rule, _ in order[-3:]] == [
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
        "lm_head.weight",
    ]


def test_the_tensors_of_layers_are_stacked() -> None:
    for rules in (TENSOR_MAP, HF_MAP):
        assert all(rule.stacked == rule.source.startswith(LAYERS) for rule in rules)


def test_fp8_is_for_the_linear_layers() -> None:
    assert LINEARS == {
        LAYERS + "self_attention.linear_qkv.weight": "attention.qkv",
        LAYERS + "self_attention.linear_proj.weight": "attention.dense",
        LAYERS + "mlp.linear_fc1.weight": "mlp.fc",
        LAYERS + "mlp.linear_fc2.weight": "mlp.proj",
    }


def test_gammas_are_the_norms_weights() -> None:
    for rules in (TENSOR_MAP, HF_MAP):
        gammas = [rule.target.rpartition(".")[2] for rule in rules if rule.is_gamma]
        assert gammas == ["weight"] * 3
        assert all("norm" in rule.source for rule in rules if rule.is_gamma)
