"""The tensors of a Hugging Face folder under Megatron's names: the map of names read backwards."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from nemotron_convert.source.archive import Archive
from nemotron_convert.source.arrays import (
    BAND_BYTES,
    Chunk,
    StoredArray,
    as_stored_axes,
    check_cover,
)
from nemotron_convert.source.hf_folder import Weight
from nemotron_convert.source.number_types import WeightType
from nemotron_convert.tensor_map import EMBEDDING, HEAD, HF_MAP, TensorRule, rule_shape
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig

WORD_EMBEDDINGS, LM_HEAD = (
    next(rule.target for rule in HF_MAP if rule.source == source) for source in (EMBEDDING, HEAD)
)


@dataclass(frozen=True)
class HfTensors:
    """The tensors of a folder. A layer's queries, keys and values become Megatron's groups.

    Nothing is copied for that: each head is a chunk of the fused matrix that lies in another file
    or at another place.
    """

    archive: Archive
    weights: Mapping[str, Weight]
    config: ModelConfig
    vocab_size: int
    is_tied: bool
    """Whether the head is the embedding."""
    _used: set[str] = field(default_factory=set)

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors, as the folder has them."""
        return self.weights.keys()

    @property
    def unused(self) -> Collection[str]:
        """Names of those that were not opened."""
        return self.weights.keys() - self._used

    def describe(self, name: str) -> str:
        """Return the type and the shape of a tensor for a person."""
        spec = self.weights[name].stored.spec
        return f"{spec.dtype} {list(spec.shape)}"

    def open(self, rule: TensorRule) -> StoredArray:
        """Return the source tensor of a rule.

        Raises `NemotronError` if a part of it is missing, or has another shape or type, or if a
        folder has no such tensor, such as a reward model's head.
        """
        parts = [part for part in HF_MAP if part.source == rule.source]
        if not parts:
            raise NemotronError(
                f"{rule.source} is not read from a Hugging Face folder",
                where=self.archive.path,
                remedy="reward models and prompts are read from a .nemo; if this is another model, "
                "correct the settings in config.json or the names of its tensors",
            )
        layers = self.config.num_layers if rule.stacked else 1
        array = self._join(parts, rule, layers)
        check_cover(array, stacked=rule.stacked)
        if rule.source == HEAD and self.is_tied and LM_HEAD in self.weights:
            self._require_tied(array)
        return array

    def open_layers(self, rule: TensorRule, num_layers: int) -> dict[int, StoredArray]:
        """Return nothing: these tensors are an adapter's, and such folders hold whole models."""
        return {}

    def _join(self, parts: list[TensorRule], rule: TensorRule, layers: int) -> StoredArray:
        chunks: list[Chunk] = []
        types: dict[WeightType, str] = {}
        for layer in range(layers):
            for part in parts:
                name = part.target.format(layer=layer)
                if name == LM_HEAD and self.is_tied and name not in self.weights:
                    name = WORD_EMBEDDINGS
                dtype, part_chunks = self._chunks(part, name, layer)
                types.setdefault(dtype, name)
                chunks += part_chunks
        if len(types) > 1:
            (first, one), (second, other), *_ = types.items()
            raise NemotronError(
                f"tensor {one} is {first.value}, {other} is {second.value}",
                where=self.archive.path,
                remedy="save the model with one dtype",
            )
        shape = rule_shape(rule, self.config, self.vocab_size, tp=1)
        whole, grid = (
            as_stored_axes(sizes, stacked=rule.stacked, is_matrix=len(rule.shape) == 2)
            for sizes in (
                (layers, shape.rows, shape.columns),
                (1, chunks[0].rows, chunks[0].columns),
            )
        )
        return StoredArray(self.archive, rule.source, whole, grid, tuple(chunks), next(iter(types)))

    def _chunks(self, part: TensorRule, name: str, layer: int) -> tuple[WeightType, list[Chunk]]:
        """Return the type of one stored tensor, and its place in the source tensor of its rule."""
        weight = self.weights.get(name)
        if weight is None:
            raise NemotronError(f"tensor {name} is missing", where=self.archive.path)
        self._used.add(name)
        spec = weight.stored.spec
        shape = rule_shape(part, self.config, self.vocab_size, tp=1)
        where = f"{self.archive.path}: {weight.member.name}"
        if spec.shape != shape.rank_shape:
            raise NemotronError(
                f"tensor {name} has shape {list(spec.shape)}, config.json asks for "
                f"{list(shape.rank_shape)}",
                where=where,
            )
        if spec.dtype not in WeightType.__members__:
            raise NemotronError(
                f"tensor {name} is {spec.dtype}",
                where=where,
                remedy="what is read: "
                f"{', '.join(WeightType.__members__)}; quantized weights are converted from the "
                "folder that they were made from",
            )
        dtype = WeightType[spec.dtype]
        pitch = shape.columns * dtype.itemsize
        return dtype, [
            Chunk(
                member=weight.member,
                offset=weight.stored.offset + block.rank_row * pitch,
                pitch=pitch,
                layer=layer,
                row=block.row,
                rows=block.rows,
                column=block.column,
                columns=block.columns,
            )
            for block in shape.blocks
        ]

    def _require_tied(self, head: StoredArray) -> None:
        """Raise `NemotronError` if a head is stored that is not the embedding, as it should be."""
        rule = next(rule for rule in HF_MAP if rule.source == EMBEDDING)
        embedding = self._join([rule], rule, 1)
        (chunk,), (other,) = head.chunks, embedding.chunks
        rows = max(1, BAND_BYTES // chunk.pitch)
        for first in range(0, chunk.rows, rows):
            count = min(rows, chunk.rows - first)
            if (head.read(chunk, first, count) != embedding.read(other, first, count)).any():
                raise NemotronError(
                    f"tie_word_embeddings is true, but {LM_HEAD} is not {WORD_EMBEDDINGS}",
                    where=self.archive.path,
                    remedy="set it to false in config.json if the head was trained by itself",
                )
