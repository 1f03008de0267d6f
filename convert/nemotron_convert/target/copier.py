"""The loop that copies a source's tensors into a layout's files, piece by piece."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nemotron_convert.shards import Block
from nemotron_convert.source.arrays import (
    BAND_BYTES,
    PAGE,
    Chunk,
    StoredArray,
)
from nemotron_convert.source.nemo import Source
from nemotron_convert.source.number_types import BF16_BYTES, EXPONENT
from nemotron_convert.target.fp8 import Quantizer, Scales
from nemotron_convert.target.journal import Finished, Journal, Note, PieceKey
from nemotron_convert.target.layout import GAMMAS, Layout, ScaleKind, Target
from nemotron_convert.target.ramp import MOST_THREADS, WINDOW_SECONDS, Ramp
from nemotron_convert.target.tensor_file import TensorFile
from nemotron_convert.tensor_map import LAYERS, LINEARS
from nemotron_core.errors import NemotronError

PIECE_BYTES = 64 << 20
"""Size in bytes of a piece, the unit of work of a thread."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a chunk, and the output tensors that contain elements of them."""

    name: str
    """Name of the source tensor in the tensor map."""
    array: StoredArray
    chunk: Chunk
    first: int
    """First row, counted within the chunk."""
    rows: int
    targets: tuple[Target, ...]

    @property
    def key(self) -> PieceKey:
        """The piece's place in the source, whatever is left to copy."""
        chunk = self.chunk
        return self.name, chunk.layer, chunk.row, chunk.column, self.first


class Copier:
    """Copies all pieces of one process and records what is finished."""

    def __init__(
        self,
        source: Source,
        layout: Layout,
        files: Mapping[str, TensorFile],
        finished: Finished,
        *,
        strict: bool,
        scales: Scales | None = None,
    ) -> None:
        """Prepare to copy everything but the tensors in `finished`.

        `strict` refuses NaN and Inf. With `scales`, which an FP8 layout needs, the linear layers'
        weights are quantized.
        """
        self.notes: dict[PieceKey, Note] = {}
        """What is noteworthy about the pieces that were copied."""
        self._files = files
        self._strict = strict
        self._gamma_offset, self._has_exact_norms = layout.gamma_offset, layout.has_exact_norms
        self._quantizer = Quantizer(scales) if scales and scales.linears else None
        if scales:
            _write_scales(layout, files, scales)
        self._pieces = list(_pieces(source, layout, finished))
        if source.archive.sequential:
            self._pieces.sort(key=lambda p: (p.chunk.member.offset, p.chunk.offset, p.first))
        self._pieces_left = Counter(
            (target.file, target.name) for piece in self._pieces for target in piece.targets
        )
        for name, file in files.items():
            for tensor in file.tensors:
                if (name, tensor) not in self._pieces_left:  # finished before, or only padding
                    file.finish(tensor)
        self._is_sequential = source.archive.sequential
        self._stopped = threading.Event()
        self._counter_lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Number of bytes to read from the source."""
        return sum(piece.rows * piece.chunk.columns * BF16_BYTES for piece in self._pieces)

    def run(self, jobs: int | None, journal: Journal, report: Callable[[int], None]) -> None:
        """Copy every piece with `jobs` threads and report the number of bytes after each band.

        Without `jobs`, the disk decides (`Ramp`). The first error, or Ctrl-C, stops the other
        threads before their next band.
        """
        ramp = Ramp(1 if self._is_sequential else jobs)
        pieces = iter(self._pieces)
        done = 0

        def work() -> None:
            nonlocal done
            while not self._stopped.is_set():
                with self._counter_lock:
                    piece = next(pieces, None)
                if piece is None:
                    return
                note = Note()
                for nbytes, band_note in self._copy_piece(piece):
                    with self._counter_lock:
                        done += nbytes
                    if any(band_note):
                        note = _sum(note, band_note)
                    report(nbytes)
                if self._stopped.is_set():  # the piece may not be whole
                    return
                if any(note):
                    self.notes[piece.key] = note
                    journal.add_note(piece.key, note)
                self._count_down(piece, journal)

        pool = ThreadPoolExecutor(MOST_THREADS if jobs is None else ramp.threads)
        try:
            futures = {pool.submit(work) for _ in range(ramp.threads)}
            ramp.begin(time.monotonic())
            while futures:
                ended, futures = wait(futures, WINDOW_SECONDS, FIRST_EXCEPTION)
                for future in ended:
                    future.result()
                if futures:
                    more = ramp.more(done, time.monotonic())
                    futures |= {pool.submit(work) for _ in range(more)}
            for future in [pool.submit(self._hash_some) for _ in self._files]:
                future.result()
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)

    def _copy_piece(self, piece: Piece) -> Iterator[tuple[int, Note]]:
        """Copy a piece band by band and yield the bytes of each, with what is noteworthy in it.

        Ends early when stopped.
        """
        rows = _whole_pages(piece.chunk, BAND_BYTES)
        end = piece.first + piece.rows
        for first in range(piece.first, end, rows):
            if self._stopped.is_set():
                return
            count = min(rows, end - first)
            note = self._copy_band(piece, first, count)
            yield count * piece.chunk.columns * BF16_BYTES, note

    def _copy_band(self, piece: Piece, first: int, rows: int) -> Note:
        """Copy `rows` rows of the piece's chunk, from row `first` of the chunk on.

        Raises `NemotronError` if they hold NaN or Inf and that is refused.
        """
        chunk = piece.chunk
        band, loss = piece.array.read_checked(chunk, first, rows)
        note = Note(bool((band & 0x7FFF).max() >= EXPONENT), loss.overflow, loss.underflow)
        if note.nonfinite and self._strict:
            raise NemotronError(
                f"tensor {piece_name(piece.key)} holds NaN or Inf",
                where=f"{piece.array.archive.path}: {chunk.member.name}",
                remedy="copy the checkpoint again, or convert it without --strict",
            )
        values: NDArray[Any] = band
        if piece.name in GAMMAS:
            values = self._gamma(band)
        if self._quantizer and piece.name in LINEARS:
            values = self._quantizer.quantize(piece.name, chunk.layer, band)
        top, left = chunk.row + first, chunk.column
        for target in piece.targets:
            for block in target.blocks:
                first_row, end_row = max(top, block.row), min(top + rows, block.row + block.rows)
                start = max(left, block.column)
                end = min(left + chunk.columns, block.column + block.columns)
                if first_row >= end_row or start >= end:
                    continue
                part = values[first_row - top : end_row - top, start - left : end - left]
                row, column = block.rank_row + first_row - block.row, start - block.column
                self._files[target.file].write(target.name, row, column, part)
        return note

    def _gamma(self, band: NDArray[np.uint16]) -> NDArray[Any]:
        """Return norm weights as the layout has them: F32, or BF16 words."""
        if self._has_exact_norms:
            return exact_gamma(band, self._gamma_offset)
        return add_gamma(band, self._gamma_offset) if self._gamma_offset else band

    def _count_down(self, piece: Piece, journal: Journal) -> None:
        """Finish the tensors of which this piece was the last one."""
        for target in piece.targets:
            key = (target.file, target.name)
            with self._counter_lock:
                self._pieces_left[key] -= 1
                is_finished = not self._pieces_left[key]
            if is_finished:
                self._files[target.file].finish(target.name)
                journal.add(*key)
        self._hash_some()

    def _hash_some(self) -> None:
        """Hash complete tensors of the files that no other thread is hashing."""
        for file in self._files.values():
            if file.can_hash:
                file.hash_some(self._stopped.is_set)


def piece_name(key: PieceKey) -> str:
    """Return the source tensor of a piece, with its layer if it has any."""
    name, layer, *_ = key
    return f"{name}, layer {layer}" if name.startswith(LAYERS) else name


def _sum(first: Note, second: Note) -> Note:
    return Note(
        first.nonfinite or second.nonfinite,
        first.overflow + second.overflow,
        first.underflow + second.underflow,
    )


def _write_scales(layout: Layout, files: Mapping[str, TensorFile], scales: Scales) -> None:
    """Write all scales of an FP8 layout."""
    for (name, layer), targets in layout.scales.items():
        for target in targets:
            if target.kind is ScaleKind.KV_CACHE:
                value = scales.kv_cache[layer]
            elif target.kind is ScaleKind.WEIGHT:
                value = scales.linears[name, layer].weight
            else:
                value = scales.linears[name, layer].input
            files[target.file].write(target.name, 0, 0, np.array([[value]], np.float32))


def _pieces(source: Source, layout: Layout, finished: Finished) -> Iterator[Piece]:
    """Yield the pieces that have elements of tensors that are not finished."""
    for (name, layer), targets in layout.targets.items():
        unfinished = [target for target in targets if (target.file, target.name) not in finished]
        if not unfinished:
            continue
        array = source.tensors[name]
        for chunk in array.layer_chunks(layer):
            rows = _whole_pages(chunk, PIECE_BYTES)
            for first in range(0, chunk.rows, rows):
                count = min(rows, chunk.rows - first)
                overlapping = tuple(
                    target
                    for target in unfinished
                    if any(_overlap(chunk, first, count, block) for block in target.blocks)
                )
                if overlapping:
                    yield Piece(name, array, chunk, first, count, overlapping)


def _whole_pages(chunk: Chunk, limit: int) -> int:
    """Return how many rows of a chunk make about `limit` bytes, in whole pages if possible."""
    rows = max(1, limit // chunk.pitch)
    step = PAGE // math.gcd(PAGE, chunk.pitch)
    return rows // step * step or rows


def _overlap(chunk: Chunk, first: int, rows: int, block: Block) -> bool:
    """Return whether `rows` rows of a chunk, from its row `first` on, have elements of a block."""
    top = chunk.row + first
    return (
        top < block.row + block.rows
        and block.row < top + rows
        and chunk.column < block.column + block.columns
        and block.column < chunk.column + chunk.columns
    )


def add_gamma(gamma: NDArray[np.uint16], offset: int) -> NDArray[np.uint16]:
    """Return a norm weight + `offset`, added in F32 and rounded to BF16 as in ModelOpt."""
    values = exact_gamma(gamma, offset)
    rounded: NDArray[np.uint16] = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return rounded


def exact_gamma(gamma: NDArray[np.uint16], offset: int) -> NDArray[np.float32]:
    """Return a norm weight + `offset` in F32, which transformers computes with."""
    values: NDArray[np.float32] = gamma.view(ml_dtypes.bfloat16).astype(np.float32)
    return values + np.float32(offset)
