"""Rules that split a matrix over tensor-parallel ranks and the layers over pipeline stages.

A rule yields blocks: rectangles of the source matrix, with their place on a rank. The converter
copies from source to rank and `Checkpoint` copies from rank to source. Both use the same blocks, so
a split and its merge cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig


@dataclass(frozen=True)
class Parallel:
    """A split over `tp` tensor-parallel ranks and `pp` stages; rank = stage · tp + TP rank."""

    tp: int
    pp: int

    @property
    def world_size(self) -> int:
        return self.tp * self.pp

    def layers(self, stage: int, num_layers: int) -> range:
        """Return the layers of a stage. The sizes differ by at most one, the larger stages first.

        >>> [Parallel(1, 3).layers(stage, 8) for stage in range(3)]
        [range(0, 3), range(3, 6), range(6, 8)]
        """
        size, remainder = divmod(num_layers, self.pp)
        start = stage * size + min(stage, remainder)
        return range(start, start + size + (stage < remainder))

    def check(self, config: ModelConfig) -> None:
        """Raise `NemotronError` if the model cannot be split so; the remedy lists what fits."""
        allowed = allowed_tp(config)
        if self.tp not in allowed:
            raise NemotronError(
                f"TP {self.tp} does not fit {config.num_heads} heads over {config.num_kv_heads} "
                f"KV heads and {config.intermediate_size} MLP rows",
                where="--tp",
                remedy=f"use one of {', '.join(map(str, allowed))}",
            )
        if not 1 <= self.pp <= config.num_layers:
            raise NemotronError(
                f"PP {self.pp} does not fit {config.num_layers} layers",
                where="--pp",
                remedy=f"use 1 to {config.num_layers}",
            )


def allowed_tp(config: ModelConfig) -> list[int]:
    """Return every TP that divides the heads and the MLP rows and distributes KV heads evenly.

    Evenly means that each rank has the same number of KV heads, or each KV head is repeated on the
    same number of ranks.
    """
    kv_heads = config.num_kv_heads
    return [
        tp
        for tp in range(1, config.num_heads + 1)
        if config.num_heads % tp == 0
        and config.intermediate_size % tp == 0
        and (kv_heads % tp == 0 or tp % kv_heads == 0)
    ]


@dataclass(frozen=True)
class Block:
    """A rectangle of the source matrix and its place on a TP rank.

    It has `rows` × `columns` elements from (`row`, `column`) of the source on. On rank `tp_rank` it
    begins at row `rank_row` and is as wide as the rank's matrix, so it is contiguous there.
    """

    tp_rank: int
    row: int
    column: int
    rows: int
    columns: int
    rank_row: int


class HeadKind(Enum):
    """The kind of an attention head in the fused input projection."""

    QUERY = "q"
    KEY = "k"
    VALUE = "v"


def replicate(rows: int, columns: int, tp: int) -> Iterator[Block]:
    """Yield the whole matrix for every rank."""
    for tp_rank in range(tp):
        yield Block(tp_rank, 0, 0, rows, columns, 0)


def split_rows(rows: int, columns: int, tp: int) -> Iterator[Block]:
    """Yield an equal number of rows, rounded up, for each rank.

    The rows that are missing on the last ranks are padding: no block covers them, so they are zero.
    With 5 rows and TP = 2:

        source  0 1 2 3 4
        rank 0  0 1 2
        rank 1  3 4 -
    """
    rank_rows = -(-rows // tp)
    for tp_rank in range(tp):
        start = min(tp_rank * rank_rows, rows)
        if start < rows:
            yield Block(tp_rank, start, 0, min(rank_rows, rows - start), columns, 0)


def split_columns(rows: int, columns: int, tp: int) -> Iterator[Block]:
    """Yield `columns / tp` columns for each rank; `tp` must divide `columns`.

    With 4 columns and TP = 2, each row of the source `0 1 2 3` becomes `0 1` on rank 0 and `2 3` on
    rank 1.
    """
    rank_columns = columns // tp
    for tp_rank in range(tp):
        yield Block(tp_rank, 0, tp_rank * rank_columns, rows, rank_columns, 0)


def split_qkv(heads: int, kv_heads: int, head_size: int, columns: int, tp: int) -> Iterator[Block]:
    """Reorder Megatron's groups into all queries, all keys, all values on each rank.

    In the source, each KV head forms a group with its `heads / kv_heads` query heads. With 8 heads,
    4 KV heads and TP = 2 (each symbol stands for `head_size` rows):

        source  q0 q1 k0 v0 | q2 q3 k1 v1 | q4 q5 k2 v2 | q6 q7 k3 v3
        rank 0  q0 q1 q2 q3 | k0 k1 | v0 v1
        rank 1  q4 q5 q6 q7 | k2 k3 | v2 v3

    With more ranks than KV heads, each rank gets the one key and value that its queries need, so
    these are repeated. With 4 heads, 2 KV heads and TP = 4:

        source  q0 q1 k0 v0 | q2 q3 k1 v1
        rank 0  q0 | k0 | v0
        rank 1  q1 | k0 | v0
        rank 2  q2 | k1 | v1
        rank 3  q3 | k1 | v1
    """
    rank_heads = heads // tp
    rank_kv_heads = max(1, kv_heads // tp)
    for tp_rank in range(tp):
        first_head = tp_rank * rank_heads
        first_group = first_head // (heads // kv_heads)
        for kind, first, count, rank_head in (
            (HeadKind.QUERY, first_head, rank_heads, 0),
            (HeadKind.KEY, first_group, rank_kv_heads, rank_heads),
            (HeadKind.VALUE, first_group, rank_kv_heads, rank_heads + rank_kv_heads),
        ):
            for source_head, offset, run in _runs(kind, heads, kv_heads, first, count):
                yield Block(
                    tp_rank,
                    source_head * head_size,
                    0,
                    run * head_size,
                    columns,
                    (rank_head + offset) * head_size,
                )


def take_heads(
    kind: HeadKind, heads: int, kv_heads: int, head_size: int, columns: int
) -> Iterator[Block]:
    """Take all heads of one kind out of Megatron's groups, as Hugging Face's separate matrices.

    With 4 heads and 2 KV heads:

        source  q0 q1 k0 v0 | q2 q3 k1 v1
        QUERY   q0 q1 q2 q3
        KEY     k0 k1
        VALUE   v0 v1
    """
    count = heads if kind is HeadKind.QUERY else kv_heads
    for source_head, offset, run in _runs(kind, heads, kv_heads, 0, count):
        yield Block(0, source_head * head_size, 0, run * head_size, columns, offset * head_size)


def _runs(
    kind: HeadKind, heads: int, kv_heads: int, first: int, count: int
) -> Iterator[tuple[int, int, int]]:
    """Yield `count` heads of a kind, from its head `first` on, in runs adjacent in the source.

    A run is (position of its first head in the source, offset of that head from `first`, length).
    The heads must be whole groups or part of one group, which `allowed_tp` ensures.
    """
    queries = heads // kv_heads
    place_in_group, heads_per_group = {
        HeadKind.QUERY: (0, queries),
        HeadKind.KEY: (queries, 1),
        HeadKind.VALUE: (queries + 1, 1),
    }[kind]
    run = min(heads_per_group, count)
    for offset in range(0, count, run):
        group, index = divmod(first + offset, heads_per_group)
        yield group * (queries + 2) + place_in_group + index, offset, run
