"""The tensors of a distributed checkpoint, whose layers are stacked or are tensors of their own."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from nemotron_convert.source.archive import Archive, read_bytes
from nemotron_convert.source.arrays import LAYER_LIMIT, StoredArray, stack, take_layer
from nemotron_convert.tensor_map import LAYER_NAME, LAYERS, TensorRule, canonical_name
from nemotron_core.errors import NemotronError

METADATA_LIMIT = 1 << 16
"""Largest size in bytes of the weights' `metadata.json`."""


class Reader(Protocol):
    """Reader of one storage format, which knows tensors by the names in the file."""

    @property
    def names(self) -> Collection[str]: ...
    def describe(self, name: str) -> str: ...
    def open(self, name: str, *, stacked: bool) -> StoredArray: ...


class Distributed:
    """The tensors of a checkpoint by their canonical names."""

    def __init__(self, reader: Reader, path: Path) -> None:
        """Raises `NemotronError` if two tensors have the same canonical name."""
        self._reader = reader
        self._path = path
        self._stored: dict[str, str] = {}
        self._layers: defaultdict[str, dict[int, str]] = defaultdict(dict)
        self._used: set[str] = set()
        for stored in reader.names:
            name = canonical_name(stored)
            if name in self._stored:
                raise NemotronError(
                    f"{self._stored[name]} and {stored} are the same tensor", where=path
                )
            self._stored[name] = stored
            if match := LAYER_NAME.fullmatch(name):
                self._layers[match[2]][int(match[1])] = name

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors and other objects."""
        return self._stored.keys()

    @property
    def unused(self) -> Collection[str]:
        """Names of those that were not opened."""
        return self._stored.keys() - self._used

    def describe(self, name: str) -> str:
        """Return the type and the shape of a tensor for a person."""
        return self._reader.describe(self._stored[name])

    def open(self, rule: TensorRule) -> StoredArray:
        """Return the source tensor of a rule.

        Raises `NemotronError` if it is missing, or is not what the reader's format says.
        """
        if rule.source in self._stored:
            self._used.add(rule.source)
            return self._reader.open(self._stored[rule.source], stacked=rule.stacked)
        layers = self._layers.get(rule.source.removeprefix(LAYERS)) if rule.stacked else None
        if not layers:
            raise NemotronError(f"tensor {rule.source} is missing", where=self._path)
        missing = next((layer for layer in range(max(layers)) if layer not in layers), None)
        if missing is not None or len(layers) > LAYER_LIMIT:
            fault = (
                f"of layer {missing} is missing" if missing is not None else "has too many layers"
            )
            raise NemotronError(f"tensor {rule.source} {fault}", where=self._path)
        self._used.update(layers.values())
        arrays = [
            self._reader.open(self._stored[layers[layer]], stacked=False)
            for layer in range(len(layers))
        ]
        return stack(rule.source, arrays, self._path)

    def open_layers(self, rule: TensorRule, num_layers: int) -> dict[int, StoredArray]:
        """Return the arrays of the layers that have the source tensor of a rule.

        Raises `NemotronError` if one is not what the reader's format says, or of no layer of
        `num_layers`.
        """
        if rule.source in self._stored:
            stacked = self.open(rule)
            layers = {layer: take_layer(stacked, layer) for layer in range(stacked.shape[0])}
        else:
            names = self._layers.get(rule.source.removeprefix(LAYERS), {})
            self._used.update(names.values())
            layers = {
                layer: self._reader.open(self._stored[name], stacked=False)
                for layer, name in names.items()
            }
        if layers and max(layers) >= num_layers:
            raise NemotronError(
                f"tensor {rule.source} has a layer {max(layers)}, the model {num_layers} layers",
                where=self._path,
            )
        return layers


def distributed_layout(archive: Archive, weights: str) -> Any:
    """Return the layout that `metadata.json` names; without that file, judge by other files."""
    metadata = weights + "metadata.json"
    if metadata in archive.members:
        try:
            content = json.loads(read_bytes(archive, metadata, limit=METADATA_LIMIT))
            return content["sharded_backend"] if isinstance(content, dict) else None
        except (ValueError, KeyError, RecursionError) as error:
            raise NemotronError(
                f"{metadata} names no sharded_backend", where=archive.path
            ) from error
    if any(name.endswith("/.zarray") for name in archive.members):
        return "zarr"
    return "torch_dist" if weights + ".metadata" in archive.members else None
