"""The shard rules on any shape: nothing lost, nothing twice, and merging undoes splitting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_convert.shards import (
    Block,
    Parallel,
    allowed_tp,
    replicate,
    split_columns,
    split_qkv,
    split_rows,
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
        assert (place == -1).all()  # no two blocks lie on each other
        place[...] = source[b.row : b.row + b.rows, b.column : b.column + b.columns]
    merged = np.full_like(source, -1)
    for b in blocks:
        part = ranks[b.tp_rank, b.rank_row : b.rank_row + b.rows]
        merged[b.row : b.row + b.rows, b.column : b.column + b.columns] = part
    assert (merged == source).all()


def numbered(rows: int, columns: int) -> np.ndarray:
    return np.arange(rows * columns).reshape(rows, columns)


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


@given(rows=st.integers(1, 5), share=st.integers(1, 6), tp=st.integers(1, 16))
def test_columns_and_replicas(rows: int, share: int, tp: int) -> None:
    split_and_merge(numbered(rows, share * tp), list(split_columns(rows, share * tp, tp)), rows, tp)
    copies = list(replicate(rows, share, tp))
    assert [b.tp_rank for b in copies] == list(range(tp))
    split_and_merge(numbered(rows, share), copies, rows, tp)


@given(num_layers=st.integers(1, 200), pp=st.integers(1, 32))
def test_stages_share_the_layers_out_in_order(num_layers: int, pp: int) -> None:
    shares = [Parallel(1, pp).layers(stage, num_layers) for stage in range(pp)]
    assert [layer for share in shares for layer in share] == list(range(num_layers))
    sizes = [len(share) for share in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_the_340b_fits_where_it_should() -> None:
    large = model(96, 8, 192, 73728)
    assert allowed_tp(large) == [1, 2, 4, 8, 16, 24, 32, 48, 96]
    Parallel(8, 2).check(large)
    with pytest.raises(NemotronError, match="TP 64 does not fit 96 heads"):
        Parallel(64, 1).check(large)
