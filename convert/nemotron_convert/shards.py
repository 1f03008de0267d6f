"""How a matrix is split over tensor-parallel ranks and layers over pipeline stages.

A rule gives blocks: rectangles of the source matrix and where each lies on its rank. The converter
copies source to rank, `Checkpoint` copies rank to source; both walk the same blocks, so a split and
its merge cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig


@dataclass(frozen=True)
class Parallel:
    """TP ranks × PP stages; rank = stage · tp + TP rank."""

    tp: int
    pp: int

    @property
    def world_size(self) -> int:
        return self.tp * self.pp

    def layers(self, stage: int, num_layers: int) -> range:
        """The layers of a stage: near-equal shares, earlier stages take the remainder.

        >>> [Parallel(1, 3).layers(stage, 8) for stage in range(3)]
        [range(0, 3), range(3, 6), range(6, 8)]
        """
        share, rest = divmod(num_layers, self.pp)
        start = stage * share + min(stage, rest)
        return range(start, start + share + (stage < rest))

    def check(self, config: ModelConfig) -> None:
        """Refuse a split that the model's shape does not allow; the remedy names those it does."""
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
    """Every TP that divides the heads and the MLP and shares out the KV heads evenly."""
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
    """`rows` × `columns` of the source from (`row`, `column`) on, at `rank_row` of TP rank `tp`.

    A block is always as wide as the rank's matrix, so on the rank it is contiguous.
    """

    tp: int
    row: int
    column: int
    rows: int
    columns: int
    rank_row: int


class HeadKind(Enum):
    """Which third of an attention's input projection a head belongs to."""

    QUERY = "q"
    KEY = "k"
    VALUE = "v"


def replicate(rows: int, columns: int, tp: int) -> Iterator[Block]:
    """Every rank holds the whole."""
    for rank in range(tp):
        yield Block(rank, 0, 0, rows, columns, 0)


def split_rows(rows: int, columns: int, tp: int) -> Iterator[Block]:
    """Rank r holds the r-th share of the rows; the last ranks' missing rows are zeros (padding)."""
    share = -(-rows // tp)
    for rank in range(tp):
        start = min(rank * share, rows)
        if start < rows:
            yield Block(rank, start, 0, min(share, rows - start), columns, 0)


def split_columns(rows: int, columns: int, tp: int) -> Iterator[Block]:
    """Rank r holds the r-th share of the columns."""
    share = columns // tp
    for rank in range(tp):
        yield Block(rank, 0, rank * share, rows, share, 0)


def split_qkv(heads: int, kv_heads: int, head_size: int, columns: int, tp: int) -> Iterator[Block]:
    """From Megatron's groups to all q, all k, all v on each rank.

    Each KV head g has r = heads / kv_heads query heads. With r = 2, kv_heads = 4, TP = 2:

        source  q0 q1 k0 v0 | q2 q3 k1 v1 | q4 q5 k2 v2 | q6 q7 k3 v3
        rank 0  q0 q1 q2 q3 | k0 k1 | v0 v1
        rank 1  q4 q5 q6 q7 | k2 k3 | v2 v3

    With more ranks than KV heads, each k and v is repeated on the ranks that share its queries.
    """
    rank_heads = heads // tp
    rank_kv_heads = max(1, kv_heads // tp)
    for rank in range(tp):
        first = rank * rank_heads
        group = first // (heads // kv_heads)
        for kind, start, count, rank_head in (
            (HeadKind.QUERY, first, rank_heads, 0),
            (HeadKind.KEY, group, rank_kv_heads, rank_heads),
            (HeadKind.VALUE, group, rank_kv_heads, rank_heads + rank_kv_heads),
        ):
            for source_head, offset, run in _runs(kind, heads, kv_heads, start, count):
                yield Block(
                    rank,
                    source_head * head_size,
                    0,
                    run * head_size,
                    columns,
                    (rank_head + offset) * head_size,
                )


def take_heads(
    kind: HeadKind, heads: int, kv_heads: int, head_size: int, columns: int
) -> Iterator[Block]:
    """All heads of one kind in order, out of Megatron's groups: one matrix, as Hugging Face has."""
    count = heads if kind is HeadKind.QUERY else kv_heads
    for source_head, offset, run in _runs(kind, heads, kv_heads, 0, count):
        row, rank_row = source_head * head_size, offset * head_size
        yield Block(0, row, 0, run * head_size, columns, rank_row)


def _runs(
    kind: HeadKind, heads: int, kv_heads: int, start: int, count: int
) -> Iterator[tuple[int, int, int]]:
    """(head in the source, offset from `start`, run) of neighbours in the source's groups."""
    queries = heads // kv_heads
    before, per_group = {
        HeadKind.QUERY: (0, queries),
        HeadKind.KEY: (queries, 1),
        HeadKind.VALUE: (queries + 1, 1),
    }[kind]
    done = 0
    while done < count:
        group, inside = divmod(start + done, per_group)
        run = min(per_group - inside, count - done)
        yield group * (queries + 2) + before + inside, done, run
        done += run
