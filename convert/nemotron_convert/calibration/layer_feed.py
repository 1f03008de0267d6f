"""The layers of the source one after the other, read while the layer before is computed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor

from nemotron_convert.calibration.decoder import from_words
from nemotron_convert.calibration.devices import Upload, host_empty
from nemotron_convert.calibration.layer_weights import (
    LINEAR_SOURCES,
    NORM_SOURCES,
    ResidentLayer,
    read_norm,
)
from nemotron_convert.source.arrays import BAND_BYTES, Chunk, StoredArray
from nemotron_convert.source.nemo import Source
from nemotron_convert.source.number_types import BF16_BYTES

READERS = min(8, 2 * (os.cpu_count() or 1))
"""Threads that read a layer: enough for a fast disk, and few beside a computation on the CPU."""
STAGE_BYTES = 32 << 20
"""Size in bytes of a piece that is uploaded at once, and of the page-locked buffer of a reader."""

Slot = Sequence[ResidentLayer]
"""Memory for one layer on each device."""


@dataclass(frozen=True)
class _Piece:
    """Some rows of a chunk of one matrix."""

    matrix: str
    array: StoredArray
    chunk: Chunk
    first: int
    rows: int


class LayerFeed:
    """Reads layers with several threads, each byte once, and copies them to every device.

    With two slots, a layer is read while the one before is computed; with one, afterwards.
    """

    def __init__(
        self, source: Source, devices: Sequence[torch.device], *, slots: int, readers: int = READERS
    ) -> None:
        self._source = source
        self._slots = [
            [ResidentLayer.allocate(source, device) for device in devices] for _ in range(slots)
        ]
        self._uploads = [Upload(device) for device in devices]
        self._readers = 1 if source.archive.sequential else readers
        self._stages: SimpleQueue[Tensor] = SimpleQueue()
        for _ in range(self._readers):
            self._stages.put(host_empty((STAGE_BYTES // BF16_BYTES,), devices))
        self._stopped = False

    def layers(self, first: int) -> Generator[tuple[int, Slot], None, None]:
        """Yield each layer's number and its weights on each device, from layer `first` on.

        The caller must have finished its computation on a layer when it asks for the next. Raises
        `NemotronError` if a layer cannot be read. Closing the iterator ends the threads.
        """
        numbers = range(first, self._source.config.num_layers)
        pending: deque[Future[Slot]] = deque()
        with ThreadPoolExecutor(1) as leader, ThreadPoolExecutor(self._readers) as pool:
            try:
                for layer, room in zip(numbers, self._slots, strict=False):
                    pending.append(leader.submit(self._read, layer, room, pool))
                for layer in numbers:
                    slot = pending.popleft().result()
                    yield layer, slot
                    if (following := layer + len(self._slots)) in numbers:
                        pending.append(leader.submit(self._read, following, slot, pool))
            finally:
                self._stopped = True
                for executor in (leader, pool):
                    executor.shutdown(cancel_futures=True)

    def _read(self, layer: int, slot: Slot, pool: ThreadPoolExecutor) -> Slot:
        pieces = list(self._pieces(layer))
        if self._source.archive.sequential:
            pieces.sort(key=lambda p: (p.chunk.member.offset, p.chunk.offset, p.first))
        for name in NORM_SOURCES:
            for part, values in enumerate(read_norm(self._source, layer, name)):
                for upload, resident in zip(self._uploads, slot, strict=True):
                    upload.start(resident.norms[name][part], values.to(torch.bfloat16))
        for _ in pool.map(lambda piece: self._load(piece, slot), pieces):
            pass
        for upload in self._uploads:
            upload.wait()
        return slot

    def _pieces(self, layer: int) -> Iterator[_Piece]:
        for name, tensor in LINEAR_SOURCES.items():
            array = self._source.tensors[tensor]
            for chunk in array.layer_chunks(layer):
                rows = max(1, STAGE_BYTES // (chunk.columns * BF16_BYTES))
                for first in range(0, chunk.rows, rows):
                    yield _Piece(name, array, chunk, first, min(rows, chunk.rows - first))

    def _load(self, piece: _Piece, slot: Slot) -> None:
        """Read a piece into a staging buffer and copy it from there to all devices."""
        chunk = piece.chunk
        stage = self._stages.get()
        try:
            if self._stopped:
                return
            staged = stage[: piece.rows * chunk.columns].view(piece.rows, chunk.columns)
            step = max(1, BAND_BYTES // chunk.pitch)
            for start in range(0, piece.rows, step):
                count = min(step, piece.rows - start)
                words = piece.array.read(chunk, piece.first + start, count)
                staged[start : start + count].copy_(from_words(words))
            top = chunk.row + piece.first
            rows = slice(top, top + piece.rows)
            columns = slice(chunk.column, chunk.column + chunk.columns)
            for upload, resident in zip(self._uploads, slot, strict=True):
                upload.start(resident.matrices[piece.matrix][rows, columns], staged)
            for upload in self._uploads:
                upload.wait()
        finally:
            self._stages.put(stage)
