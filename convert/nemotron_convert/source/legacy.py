"""Reader of the layout before distributed checkpoints: one `model_weights.ckpt` for each rank.

Each file is a `torch.save` of the rank's shard of every tensor. Layers are separate tensors and
counted from 0 on each pipeline stage. The shards become chunks of the whole tensors here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_convert.source.archive import Archive, Member
from nemotron_convert.source.arrays import (
    Chunk,
    StoredArray,
    as_layer_row_column,
    as_stored_axes,
    check_cover,
)
from nemotron_convert.source.number_types import WeightType
from nemotron_convert.source.safe_pickle import Record
from nemotron_convert.source.torch_zip import SavedTensor, TorchZip
from nemotron_convert.tensor_map import (
    LAYER_NAME,
    LAYERS,
    Place,
    Split,
    TensorRule,
    canonical_name,
)
from nemotron_core.errors import NemotronError

CHECKPOINT_NAME = "model_weights.ckpt"
RANK_FOLDER = re.compile(r"(?:mp_rank_(\d+)|tp_rank_(\d+)_pp_rank_(\d+))/" + CHECKPOINT_NAME)


@dataclass(frozen=True)
class _Rank:
    """One rank's file: `tensors` is its unpickled state dict."""

    member: Member
    saved: TorchZip
    tensors: Mapping[str, Any]

    def find(self, name: str) -> SavedTensor | None:
        """Return where a tensor is stored, or `None` if the rank does not have it."""
        tensor = self.tensors.get(name)
        return None if tensor is None else self.saved.find(name, tensor)


def find_ranks(archive: Archive, root: str) -> dict[tuple[int, int], Member]:
    """Return the ranks' files by (pipeline stage, TP rank); empty if the layout is another one.

    Raises `NemotronError` if two files are of the same rank.
    """
    ranks: dict[tuple[int, int], Member] = {}
    for name, member in archive.members.items():
        if not name.startswith(root):
            continue
        if name == root + CHECKPOINT_NAME:
            rank = 0, 0
        elif match := RANK_FOLDER.fullmatch(name.removeprefix(root)):
            only_tp, tp, pp = match.groups()
            rank = int(pp or 0), int(only_tp or tp)
        else:
            continue
        if rank in ranks:
            raise NemotronError(
                f"{ranks[rank].name} and {name} are of the same rank", where=archive.path
            )
        ranks[rank] = member
    return ranks


class Legacy:
    """The tensors of one checkpoint, each put together from the shards of all ranks."""

    def __init__(self, archive: Archive, members: Mapping[tuple[int, int], Member]) -> None:
        self._archive = archive
        self._pp = max(stage for stage, _ in members) + 1
        self._tp = max(tp for _, tp in members) + 1
        # Not made into a list: the name of a folder can claim any number of ranks.
        ranks = ((stage, tp) for stage in range(self._pp) for tp in range(self._tp))
        if missing := next((rank for rank in ranks if rank not in members), None):
            stage, tp = missing
            raise NemotronError(
                f"the {CHECKPOINT_NAME} of TP rank {tp}, pipeline stage {stage} is missing",
                where=archive.path,
                remedy="copy the checkpoint again",
            )
        self._ranks = {rank: _open_rank(archive, members[rank]) for rank in sorted(members)}

        self._used: set[tuple[int, str]] = set()

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors, whose layers are counted from 0 on each stage."""
        return {name for rank in self._ranks.values() for name in rank.tensors}

    @property
    def unused(self) -> Collection[str]:
        """Names of the tensors that a stage has and that were not opened."""
        return {
            name
            for (stage, _), rank in self._ranks.items()
            for name in rank.tensors
            if (stage, name) not in self._used
        }

    def describe(self, name: str) -> str:
        """Return the type and the shape of a tensor's shard for a person, or that it is none."""
        rank = next(rank for rank in self._ranks.values() if name in rank.tensors)
        try:
            saved = rank.find(name)
        except NemotronError:
            saved = None
        return f"{saved.dtype.value} {list(saved.shape)}" if saved else "not a tensor"

    def open(self, rule: TensorRule) -> StoredArray:
        """Return the source tensor of a rule.

        Raises `NemotronError` if a rank lacks its shard, or the shards do not make up a tensor.
        """
        chunks: list[Chunk] = []
        dtypes: set[WeightType] = set()
        layers = 0
        for stage in self._stages(rule):
            for name in self._names(rule, stage):
                self._used.add((stage, name))
                chunks += self._layer(rule, stage, name, layers, dtypes)
                layers += 1
        if not chunks:
            raise NemotronError(f"tensor {rule.source} is missing", where=self._archive.path)
        return self._array(rule, chunks, dtypes, layers, stacked=rule.stacked)

    def open_layers(self, rule: TensorRule, num_layers: int) -> dict[int, StoredArray]:
        """Return the arrays of the layers that have the source tensor of a rule.

        Every stage must hold as many of the model's `num_layers` layers. Raises `NemotronError` as
        `open` does.
        """
        if num_layers % self._pp:
            raise NemotronError(
                f"{num_layers} layers on {self._pp} pipeline stages", where=self._archive.path
            )
        stage_layers = num_layers // self._pp
        rest = rule.source.removeprefix(LAYERS)
        arrays = {}
        for stage in range(self._pp):
            for name in self._ranks[stage, 0].tensors:
                match = LAYER_NAME.fullmatch(name)
                if match is None or match[2] != rest:
                    continue
                local = int(match[1])
                if local >= stage_layers:
                    raise NemotronError(
                        f"{name} on pipeline stage {stage}, which has {stage_layers} layers",
                        where=self._archive.path,
                    )
                self._used.add((stage, name))
                dtypes: set[WeightType] = set()
                chunks = self._layer(rule, stage, name, 0, dtypes)
                layer = stage * stage_layers + local
                arrays[layer] = self._array(rule, chunks, dtypes, 1, stacked=False)
        return dict(sorted(arrays.items()))

    def _array(
        self,
        rule: TensorRule,
        chunks: list[Chunk],
        dtypes: set[WeightType],
        layers: int,
        *,
        stacked: bool,
    ) -> StoredArray:
        """Return the array of these chunks, which must cover it and have one type."""
        if len(dtypes) > 1:
            types = ", ".join(sorted(dtype.value for dtype in dtypes))
            raise NemotronError(
                f"the shards of tensor {rule.source} are {types}", where=self._archive.path
            )
        first, last = chunks[0], chunks[-1]
        sizes = (layers, last.row + last.rows, last.column + last.columns)
        shape, chunk_shape = (
            as_stored_axes(lengths, stacked=stacked, is_matrix=len(rule.shape) == 2)
            for lengths in (sizes, (1, first.rows, first.columns))
        )
        (dtype,) = dtypes
        array = StoredArray(self._archive, rule.source, shape, chunk_shape, tuple(chunks), dtype)
        check_cover(array, stacked=stacked)
        return array

    def _stages(self, rule: TensorRule) -> range:
        """Return the pipeline stages that hold a rule's tensor."""
        if rule.stacked:
            return range(self._pp)
        return range(1) if rule.place is Place.FIRST else range(self._pp - 1, self._pp)

    def _names(self, rule: TensorRule, stage: int) -> list[str]:
        """Return the names of the rule's tensors on a stage, in the order of the layers."""
        tensors = self._ranks[stage, 0].tensors
        if not rule.stacked:
            return [rule.source] if rule.source in tensors else []
        rest = rule.source.removeprefix(LAYERS)
        names: list[str] = []
        while (name := f"{LAYERS}{len(names)}.{rest}") in tensors:
            names.append(name)
        return names

    def _layer(
        self, rule: TensorRule, stage: int, name: str, layer: int, dtypes: set[WeightType]
    ) -> list[Chunk]:
        """Return the shards of a stage's tensor `name`, one per rank, as chunks of `layer`.

        The types of the shards are added to `dtypes`.
        """
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
            _, rows, columns = as_layer_row_column(saved.shape, stacked=False, missing=1)
            dtypes.add(saved.dtype)
            pitch = columns * saved.dtype.itemsize
            chunks.append(
                Chunk(rank.member, saved.offset, pitch, layer, row, rows, column, columns)
            )
            if rule.split is Split.COLUMNS:
                column += columns
            else:
                row += rows
        return chunks


def _open_rank(archive: Archive, member: Member) -> _Rank:
    """Read a rank's state dict, without the tensors' elements."""
    saved = TorchZip(archive, member, 0, member.size)
    state = saved.load()
    tensors = state.entries if isinstance(state, Record) else state
    where = f"{archive.path}: {member.name}"
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise NemotronError("not a state dict", where=where)
    if any(re.fullmatch(r"model_?\d+", name) for name in tensors):
        raise NemotronError(
            "it was saved with virtual pipeline stages",
            where=where,
            remedy="save it with virtual_pipeline_model_parallel_size: null",
        )
    return _Rank(member, saved, {canonical_name(name): tensors[name] for name in tensors})
