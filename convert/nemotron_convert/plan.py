"""What a conversion would do, and whether it can be done here, before it is begun."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from nemotron_convert.convert import Options, lay_out, room_needed
from nemotron_convert.source.arrays import BAND_BYTES
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.layout import Layout
from nemotron_core.errors import NemotronError
from nemotron_core.files import partial_path
from nemotron_core.folder import check_output

MIB = 1 << 20
GIB = 1 << 30
CARDS = {
    "A100 40 GB": 40960 * MIB,
    "L40S 48 GB": 46068 * MIB,
    "H100 80 GB": 81559 * MIB,
    "A100 80 GB": 81920 * MIB,
    "H100 NVL 94 GB": 95830 * MIB,
    "H200 141 GB": 143771 * MIB,
    "B200 180 GB": 183359 * MIB,
}
"""Memory as nvidia-smi shows it."""
WEIGHT_SHARE = 0.9
"""Of a card's memory: the rest is for the KV cache, activations and the CUDA context."""
PROCESS_BYTES = 200 * MIB
"""Python and the libraries."""
BANDS_PER_JOB = 5
"""The band, its masked and its split copies, and the hash's buffer."""
SAMPLE_BYTES = 256 * MIB


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes, times in seconds."""

    source: str
    output: Path
    layout: Layout
    shapes: dict[str, tuple[int, ...]]
    """Of the source's tensors."""
    to_read: int
    to_write: int
    room: int
    free: int
    memory: int
    rate: float
    """Bytes per second that were read here and written there, just now."""

    @property
    def seconds(self) -> float:
        return self.to_write / self.rate

    @property
    def largest_file(self) -> int:
        """The weights of one GPU, where a file is a rank."""
        return max(
            sum(spec.nbytes for spec in tensors.values()) for tensors in self.layout.files.values()
        )

    def check(self) -> None:
        """NemotronError if the conversion would fail for what is known now."""
        check_output(self.output)
        if self.room > self.free:
            raise NemotronError(
                f"the checkpoint needs {self.room:,} more bytes, {self.free:,} are free",
                where=self.output.parent,
                remedy="make room or name another disk with -o",
            )

    def print(self, console: Console) -> None:
        """As tables."""
        tensors = Table(box=None)
        for title in ("source tensor", "shape", "becomes", "shape", "files"):
            tensors.add_column(title, overflow="fold")
        for name, shape in self.shapes.items():
            layers = [layer for source, layer in self.layout.targets if source == name]
            targets = self.layout.targets[name, layers[0]]
            for target in dict.fromkeys(target.name for target in targets):
                files = [t.file for t in targets if t.name == target]
                spec = self.layout.files[files[0]][target]
                shown = (name, _sizes(shape), target, _sizes(spec.shape), str(len(files)))
                tensors.add_row(*shown)
        facts = Table(show_header=False, box=None)
        for fact in (
            ("read", f"{self.to_read:,} bytes from {self.source}"),
            ("write", f"{self.to_write:,} bytes in {len(self.layout.files)} files"),
            ("disk", f"{self.room:,} bytes needed, {self.free:,} free"),
            ("memory", f"about {decimal(self.memory)} per process"),
            (
                "time",
                f"about {_duration(self.seconds)} at {decimal(int(self.rate))}/s, just measured",
            ),
        ):
            facts.add_row(*fact)
        cards = Table("card", "memory", "weights per GPU", "", box=None)
        for card, memory in CARDS.items():
            fits = self.largest_file <= memory * WEIGHT_SHARE
            cards.add_row(
                card,
                f"{memory / GIB:.1f} GiB",
                f"{self.largest_file / GIB:.1f} GiB",
                "fits" if fits else "does not fit",
            )
        for table in (tensors, facts):
            console.print(table)
            console.print()
        if any(name.startswith("rank") for name in self.layout.files):
            console.print(cards)


def make_plan(source_path: Path, output: Path, options: Options) -> Plan:
    """NemotronError if the source or the split cannot be; `Plan.check` says the rest."""
    with Source.open(source_path) as source:
        layout = lay_out(source, options)
        parent = _existing(output.parent)
        return Plan(
            source=str(source_path),
            output=output,
            layout=layout,
            shapes={name: tensor.shape for name, tensor in source.tensors.items()},
            to_read=source.nbytes,
            to_write=sum(
                spec.nbytes for tensors in layout.files.values() for spec in tensors.values()
            ),
            room=room_needed(layout, partial_path(output)),
            free=shutil.disk_usage(parent).free,
            memory=PROCESS_BYTES + options.jobs * BANDS_PER_JOB * BAND_BYTES,
            rate=_measure(source, parent),
        )


def _measure(source: Source, folder: Path) -> float:
    """Copy a sample of the weights into an unnamed file and make it durable; bytes per second."""
    done = 0
    start = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for band in _sample(source):
                done += file.write(band)
            os.fdatasync(file.fileno())
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=folder) from error
    return done / (time.perf_counter() - start)


def _sample(source: Source) -> Iterator[bytes]:
    """The first bands of the largest tensor, at most SAMPLE_BYTES of them."""
    left = SAMPLE_BYTES
    tensor = max(source.tensors.values(), key=lambda tensor: tensor.nbytes)
    for chunk in tensor.chunks:
        rows = max(1, BAND_BYTES // chunk.pitch)
        for first in range(0, chunk.rows, rows):
            if left <= 0:
                return
            band = tensor.read(chunk, first, min(rows, chunk.rows - first)).tobytes()
            left -= len(band)
            yield band


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _sizes(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
