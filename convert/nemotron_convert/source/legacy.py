"""The layout before distributed checkpoints: one `model_weights.ckpt` for each rank.

Each is a `torch.save` of that rank's share of every tensor, the layers one by one and counted from
0 on each pipeline stage. The shares are put together here as chunks of the whole tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_convert.source.archive import Archive, Member
from nemotron_convert.source.arrays import BF16_BYTES, Chunk, StoredArray, as_matrices, check_cover
from nemotron_convert.source.safe_pickle import Record
from nemotron_convert.source.torch_zip import SavedTensor, TorchZip
from nemotron_convert.tensor_map import LAYERS, Split, TensorRule
from nemotron_core.errors import NemotronError

CHECKPOINT_NAME = "model_weights.ckpt"
RANK_FOLDER = re.compile(r"(?:mp_rank_(\d+)|tp_rank_(\d+)_pp_rank_(\d+))/" + CHECKPOINT_NAME)


@dataclass(frozen=True)
class _Rank:
    member: Member
    saved: TorchZip
    tensors: Mapping[str, Any]

    def find(self, name: str) -> SavedTensor | None:
        tensor = self.tensors.get(name)
        return None if tensor is None else self.saved.find(name, tensor)


def find_ranks(archive: Archive, root: str) -> dict[tuple[int, int], Member]:
    """The ranks' files by (pipeline stage, TP rank); empty if this is another layout."""
    found: dict[tuple[int, int], Member] = {}
    for name, member in archive.members.items():
        if not name.startswith(root):
            continue
        if name == root + CHECKPOINT_NAME:
            rank = 0, 0
        elif match := RANK_FOLDER.fullmatch(name.removeprefix(root)):
            alone, tp, pp = match.groups()
            rank = int(pp or 0), int(alone or tp)
        else:
            continue
        if rank in found:
            raise NemotronError(
                f"{found[rank].name} and {name} are of the same rank", where=archive.path
            )
        found[rank] = member
    return found


class Legacy:
    """The tensors of one checkpoint, put together from its ranks."""

    def __init__(self, archive: Archive, members: Mapping[tuple[int, int], Member]) -> None:
        self._archive = archive
        self._pp = max(stage for stage, _ in members) + 1
        self._tp = max(tp for _, tp in members) + 1
        # Not listed before: a folder's name can claim any number of ranks.
        ranks = ((stage, tp) for stage in range(self._pp) for tp in range(self._tp))
        if missing := next((rank for rank in ranks if rank not in members), None):
            stage, tp = missing
            raise NemotronError(
                f"the {CHECKPOINT_NAME} of TP rank {tp}, pipeline stage {stage} is missing",
                where=archive.path,
                remedy="copy the checkpoint again",
            )
        self._ranks = {rank: _open_rank(archive, members[rank]) for rank in sorted(members)}

    def open(self, rule: TensorRule) -> StoredArray:
        """NemotronError if a rank lacks its share, or the shares do not make up a tensor."""
        chunks: list[Chunk] = []
        layers = 0
        for stage in range(self._pp):
            for name in self._names(rule, stage):
                chunks += self._layer(rule, stage, name, layers)
                layers += 1
        if not chunks:
            raise NemotronError(f"tensor {rule.source} is missing", where=self._archive.path)
        first, last = chunks[0], chunks[-1]
        sizes = (layers, last.row + last.rows, last.column + last.columns)
        axes = (rule.stacked, len(rule.shape) == 2, True)
        array = StoredArray(
            self._archive,
            rule.source,
            tuple(size for size, axis in zip(sizes, axes, strict=True) if axis),
            tuple(
                size
                for size, axis in zip((1, first.rows, first.columns), axes, strict=True)
                if axis
            ),
            tuple(chunks),
        )
        check_cover(array, stacked=rule.stacked)
        return array

    def _names(self, rule: TensorRule, stage: int) -> list[str]:
        """The rule's tensors on a stage, in order."""
        tensors = self._ranks[stage, 0].tensors
        if not rule.stacked:
            return [rule.source] if rule.source in tensors else []
        rest = rule.source.removeprefix(LAYERS)
        names: list[str] = []
        while (name := f"{LAYERS}{len(names)}.{rest}") in tensors:
            names.append(name)
        return names

    def _layer(self, rule: TensorRule, stage: int, name: str, layer: int) -> list[Chunk]:
        chunks = []
        row = column = 0
        for tp in range(1 if rule.split is Split.REPLICATED else self._tp):
            rank = self._ranks[stage, tp]
            saved = rank.find(name)
            if saved is None or len(saved.shape) != len(rule.shape):
                raise NemotronError(
                    f"tensor {name} is missing or misshapen",
                    where=f"{self._archive.path}: {rank.member.name}",
                )
            _, rows, columns = as_matrices(saved.shape, stacked=False, missing=1)
            pitch = columns * BF16_BYTES
            chunks.append(
                Chunk(rank.member, saved.offset, pitch, layer, row, rows, column, columns)
            )
            if rule.split is Split.COLUMNS:
                column += columns
            else:
                row += rows
        return chunks


def _open_rank(archive: Archive, member: Member) -> _Rank:
    saved = TorchZip(archive, member, 0, member.size)
    state = saved.load()
    tensors = state.entries if isinstance(state, Record) else state
    if not isinstance(tensors, dict):
        raise NemotronError("not a state dict", where=f"{archive.path}: {member.name}")
    return _Rank(member, saved, tensors)
