"""The shard rules: their pictures for small shapes, and their invariants for any shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_convert.shards import (
    Block,
    HeadKind,
    Parallel,
    allowed_tp,
    replicate,
    split_columns,
    split_qkv,
    split_rows,
    take_heads,
)
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig


def model(heads: int, kv_heads: int, head_size: int = 2, ffn: int = 48) -> ModelConfig:
    return ModelConfig(
        num_layers=7,
        hidden_size=heads * head_size,
        intermediate_size=ffn,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        max_positions=16,
        norm_eps=1e-5,
        rotary_pct=0.5,
        rotary_base=10000.0,
        gamma_is_centered=True,
        tokenizer_member="tokenizer.model",
    )


def split_and_merge(source: np.ndarray, blocks: Sequence[Block], rank_rows: int, tp: int) -> None:
    """Every element of the source reaches a rank, and comes back from there."""
    width = blocks[0].columns
    ranks = np.full((tp, rank_rows, width), -1)
    for b in blocks:
        place = ranks[b.tp_rank, b.rank_row : b.rank_row + b.rows]
        assert (place == -1).all()  # no two blocks overlap
        place[...] = source[b.row : b.row + b.rows, b.column : b.column + b.columns]
    merged = np.full_like(source, -1)
    for b in blocks:
        part = ranks[b.tp_rank, b.rank_row : b.rank_row + b.rows]
        merged[b.row : b.row + b.rows, b.column : b.column + b.columns] = part
    assert (merged == source).all()


def numbered(rows: int, columns: int) -> np.ndarray:
    return np.arange(rows * columns).reshape(rows, columns)


def test_blocks_of_rows_columns_and_replicas() -> None:
    """Rows 5 over 2 ranks: the last row of rank 1 is padding. Over 4: rank 3 has only padding."""
    assert list(split_rows(5, 9, 2)) == [Block(0, 0, 0, 3, 9, 0), Block(1, 3, 0, 2, 9, 0)]
    assert list(split_rows(5, 9, 4)) == [
        Block(0, 0, 0, 2, 9, 0),
        Block(1, 2, 0, 2, 9, 0),
        Block(2, 4, 0, 1, 9, 0),
    ]
    assert list(split_columns(5, 6, 2)) == [Block(0, 0, 0, 5, 3, 0), Block(1, 0, 3, 5, 3, 0)]
    assert list(replicate(5, 9, 2)) == [Block(0, 0, 0, 5, 9, 0), Block(1, 0, 0, 5, 9, 0)]


SOURCE = "q0 q1 k0 v0 q2 q3 k1 v1 q4 q5 k2 v2 q6 q7 k3 v3"
QKV_PICTURES = {
    (8, 4, 1, SOURCE): ["q0 q1 q2 q3 q4 q5 q6 q7 k0 k1 k2 k3 v0 v1 v2 v3"],
    (8, 4, 2, SOURCE): ["q0 q1 q2 q3 k0 k1 v0 v1", "q4 q5 q6 q7 k2 k3 v2 v3"],
    (4, 2, 4, SOURCE[:23]): ["q0 k0 v0", "q1 k0 v0", "q2 k1 v1", "q3 k1 v1"],
    (4, 1, 2, "q0 q1 q2 q3 k0 v0"): ["q0 q1 k0 v0", "q2 q3 k0 v0"],
}


@pytest.mark.parametrize("case", QKV_PICTURES)
@pytest.mark.parametrize("head_size", [1, 3])
def test_pictures_of_qkv(case: tuple[int, int, int, str], head_size: int) -> None:
    heads, kv_heads, tp, picture = case
    ranks = [[""] * (len(rank.split()) * head_size) for rank in QKV_PICTURES[case]]
    source = [(head, row) for head in picture.split() for row in range(head_size)]
    for block in split_qkv(heads, kv_heads, head_size, 5, tp):
        assert (block.column, block.columns) == (0, 5)
        place = slice(block.rank_row, block.rank_row + block.rows)
        ranks[block.tp_rank][place] = source[block.row : block.row + block.rows]
    assert ranks == [
        [(head, row) for head in rank.split() for row in range(head_size)]
        for rank in QKV_PICTURES[case]
    ]


@pytest.mark.parametrize(
    ("kind", "picture"),
    [
        (HeadKind.QUERY, "q0 q1 q2 q3 q4 q5 q6 q7"),
        (HeadKind.KEY, "k0 k1 k2 k3"),
        (HeadKind.VALUE, "v0 v1 v2 v3"),
    ],
)
def test_pictures_of_heads_taken_out(kind: HeadKind, picture: str) -> None:
    source = [(head, row) for head in SOURCE.split() for row in range(3)]
    taken = {}
    for block in take_heads(kind, 8, 4, 3, 5):
        assert (block.tp_rank, block.column, block.columns) == (0, 0, 5)
        for row in range(block.rows):
            assert block.rank_row + row not in taken
            taken[block.rank_row + row] = source[block.row + row]
    expected = [(head, row) for head in picture.split() for row in range(3)]
    assert taken == dict(enumerate(expected))


@given(
    kv_heads=st.integers(1, 12),
    per_group=st.integers(1, 12),
    head_size=st.integers(1, 3),
    data=st.data(),
)
def test_qkv_of_any_heads(
    kv_heads: int, per_group: int, head_size: int, data: st.DataObject
) -> None:
    heads = kv_heads * per_group
    tp = data.draw(st.sampled_from(allowed_tp(model(heads, kv_heads, ffn=heads))))
    source = numbered((heads + 2 * kv_heads) * head_size, 3)
    blocks = list(split_qkv(heads, kv_heads, head_size, 3, tp))
    rank_heads, rank_kv = heads // tp, max(1, kv_heads // tp)
    split_and_merge(source, blocks, (rank_heads + 2 * rank_kv) * head_size, tp)
    # Each rank's k and v are those of its own queries, in order.
    groups = source.reshape(kv_heads, per_group + 2, head_size, 3)
    for b in blocks:
        head = b.rank_row // head_size
        group, inside = divmod(b.row // head_size, per_group + 2)
        if head >= rank_heads:
            kind, number = divmod(head - rank_heads, rank_kv)
            assert inside == per_group + kind
            assert group == b.tp_rank * rank_heads // per_group + number
        else:
            assert group * per_group + inside == b.tp_rank * rank_heads + head
        assert (source[b.row] == groups[group, inside, 0]).all()


@given(rows=st.integers(1, 40), columns=st.integers(1, 5), tp=st.integers(1, 16))
def test_rows_with_padding(rows: int, columns: int, tp: int) -> None:
    split_and_merge(
        numbered(rows, columns), list(split_rows(rows, columns, tp)), -(-rows // tp), tp
    )


@given(rows=st.integers(1, 5), rank_columns=st.integers(1, 6), tp=st.integers(1, 16))
def test_columns_and_replicas(rows: int, rank_columns: int, tp: int) -> None:
    columns = rank_columns * tp
    split_and_merge(numbered(rows, columns), list(split_columns(rows, columns, tp)), rows, tp)
    copies = list(replicate(rows, columns, tp))
    assert [b.tp_rank for b in copies] == list(range(tp))
    split_and_merge(numbered(rows, columns), copies, rows, tp)


@given(num_layers=st.integers(1, 200), pp=st.integers(1, 32))
def test_stages_divide_the_layers_in_order(num_layers: int, pp: int) -> None:
    stages = [Parallel(1, pp).layers(stage, num_layers) for stage in range(pp)]
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    sizes = [len(stage) for stage in stages]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_world_size() -> None:
    assert Parallel(4, 3).world_size == 12


def test_a_split_and_its_blocks_cannot_be_changed() -> None:
    """A plan is made once, and its parts are shared."""
    parallel, block = Parallel(4, 3), Block(0, 0, 0, 5, 9, 0)
    with pytest.raises(FrozenInstanceError):
        parallel.tp = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        block.row = 1  # type: ignore[misc]


def test_the_340b_fits_where_it_should() -> None:
    large = model(96, 8, 192, 73728)
    assert allowed_tp(large) == [1, 2, 4, 8, 16, 24, 32, 48, 96]
    Parallel(8, 2).check(large)
    with pytest.raises(NemotronError, match="TP 64 does not fit 96 heads"):
        Parallel(64, 1).check(large)


def test_heads_mlp_and_kv_heads_each_limit_tp() -> None:
    assert allowed_tp(model(12, 12, ffn=12)) == [1, 2, 3, 4, 6, 12]
    assert allowed_tp(model(12, 12, ffn=8)) == [1, 2, 4]
    assert allowed_tp(model(12, 4, ffn=12)) == [1, 2, 4, 12]  # 6 ranks cannot share 4 KV heads


@pytest.mark.parametrize("pp", [0, 8])
def test_each_stage_has_a_layer(pp: int) -> None:
    Parallel(1, 1).check(model(12, 12))
    Parallel(1, 7).check(model(12, 12))
    with pytest.raises(NemotronError, match=f"PP {pp} does not fit 7 layers .*: use 1 to 7"):
        Parallel(1, pp).check(model(12, 12))
