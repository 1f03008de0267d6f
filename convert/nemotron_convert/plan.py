"""The plan of a conversion: what it would read and write, and whether that is possible here."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from nemotron_convert.calibration_cost import CalibrationCost, calibration_cost
from nemotron_convert.convert import built_in_texts
from nemotron_convert.options import (
    Options,
    lay_out,
    missing_bytes,
    require_space,
    tensor_bytes,
)
from nemotron_convert.source.arrays import BAND_BYTES
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.layout import Dtype, Layout
from nemotron_convert.target.ramp import MOST_THREADS
from nemotron_core.errors import NemotronError
from nemotron_core.files import partial_path
from nemotron_core.folder import check_output, existing_folder

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
"""Memory of each GPU in bytes, as nvidia-smi shows it."""
NO_FP8 = frozenset(card for card in CARDS if card.startswith("A100"))
"""GPUs that cannot compute in FP8, because they are older than it."""
WEIGHT_FRACTION = 0.9
"""Largest fraction of a GPU's memory for weights. The KV cache, the activations and the CUDA
context need the rest."""
PROCESS_BYTES = 200 * MIB
"""Memory of a process without its jobs: Python and the libraries."""
BANDS_PER_JOB = 5
"""Bands that a job holds at a time: the band, its masked and its split copies, and the buffer of
the hash."""
SAMPLE_BYTES = 256 * MIB
"""Bytes that are copied to measure the speed."""


@dataclass(frozen=True)
class Plan:
    """A conversion that has not started. Sizes are in bytes."""

    source: str
    output: Path
    layout: Layout
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the source's tensors, by name."""
    to_read: int
    to_write: int
    missing: int
    """Bytes of disk that are needed beyond those of an interrupted run."""
    free: int
    """Bytes that are free on the disk."""
    memory: int
    """Memory of each process."""
    read_rate: float
    """Measured speed of reading the source from its disk, in bytes per second."""
    write_rate: float
    """Measured speed of writing to the output's disk, in bytes per second."""
    calibration: CalibrationCost | None = None
    """The calibration of an FP8 conversion that uses no earlier one."""
    adapters: tuple[str, ...] = ()
    """The adapters that are converted with the source, for a person."""

    @property
    def seconds(self) -> float:
        """Estimated duration of the conversion in seconds, without the calibration."""
        return self.to_read / self.read_rate + self.to_write / self.write_rate

    @property
    def disk(self) -> int:
        """Bytes of disk that are needed, those of the calibration included."""
        return self.missing + (self.calibration.disk if self.calibration else 0)

    @property
    def is_fp8(self) -> bool:
        """Whether the linear layers are FP8."""
        return bool(self.layout.scales)

    @property
    def largest_file(self) -> int:
        """Size of the largest file. In a TensorRT-LLM checkpoint these are one GPU's weights."""
        return max(
            sum(spec.nbytes for spec in tensors.values()) for tensors in self.layout.files.values()
        )

    def check(self) -> None:
        """Raise `NemotronError` if the output cannot be made or the disk is too small."""
        check_output(self.output, source=Path(self.source))
        require_space(self.disk, self.free, self.output.parent)

    def to_json(self) -> str:
        """Return the plan as one JSON object: bytes, seconds, and bytes or operations per second.

        `files` has the bytes of the tensors in each file.
        """
        cost = self.calibration
        return json.dumps(
            {
                "source": self.source,
                "adapters": self.adapters,
                "output": str(self.output),
                "files": {
                    name: sum(spec.nbytes for spec in tensors.values())
                    for name, tensors in self.layout.files.items()
                },
                "read": self.to_read,
                "write": self.to_write,
                "disk": self.disk,
                "free": self.free,
                "memory": self.memory,
                "read_rate": self.read_rate,
                "write_rate": self.write_rate,
                "seconds": self.seconds,
                "calibration": cost and asdict(cost) | {"seconds": cost.seconds(self.read_rate)},
            },
            indent=2,
        )

    def print(self, console: Console) -> None:
        """Print tables of the tensors, the sizes and, for a TensorRT-LLM checkpoint, the GPUs."""
        tensors = Table(box=None)
        for title in ("source tensor", "shape", "becomes", "shape", "files"):
            tensors.add_column(title, overflow="fold")
        for name, shape in self.shapes.items():
            layer = next(layer for source, layer in self.layout.targets if source == name)
            targets = self.layout.targets[name, layer]
            for target_name in dict.fromkeys(target.name for target in targets):
                files = [target.file for target in targets if target.name == target_name]
                target_shape = _format_shape(self.layout.files[files[0]][target_name].shape)
                tensors.add_row(
                    name, _format_shape(shape), target_name, target_shape, str(len(files))
                )
        facts = Table(show_header=False, box=None)
        facts.add_row("read", f"{self.to_read:,} bytes from {self.source}")
        for adapter in self.adapters:
            facts.add_row("adapter", adapter)
        facts.add_row("write", f"{self.to_write:,} bytes in {len(self.layout.files)} files")
        facts.add_row("disk", f"{self.disk:,} bytes needed, {self.free:,} free")
        facts.add_row("memory", f"about {decimal(self.memory)} per process")
        speeds = f"{decimal(int(self.read_rate))}/s read, {decimal(int(self.write_rate))}/s written"
        facts.add_row("time", f"about {_duration(self.seconds)} at {speeds}, just measured")
        if cost := self.calibration:
            facts.add_row("calibration", built_in_texts(cost.tokens) if cost.built_in else "")
            devices = ", ".join(cost.devices)
            facts.add_row("", f"{cost.tokens:,} tokens, {cost.flop:.2g} FLOP on {devices}")
            facts.add_row(
                "",
                f"about {decimal(cost.device_memory)} of memory on each device and "
                f"{decimal(cost.memory)} beside, {decimal(cost.disk)} of disk; hidden states "
                f"{cost.states}",
            )
            duration = _duration(cost.seconds(self.read_rate))
            facts.add_row("", f"about {duration} more at {cost.flops:.2g} FLOP/s, just measured")
        cards = Table("card", "memory", "weights per GPU", "", box=None)
        for card, memory in CARDS.items():
            fits = self.largest_file <= memory * WEIGHT_FRACTION
            verdict = "fits" if fits else "does not fit"
            cards.add_row(
                card,
                f"{memory / GIB:.1f} GiB",
                f"{self.largest_file / GIB:.1f} GiB",
                "cannot compute in FP8" if self.is_fp8 and card in NO_FP8 else verdict,
            )
        for table in (tensors, facts):
            console.print(table)
            console.print()
        if any(name.startswith("rank") for name in self.layout.files):
            console.print(cards)


def make_plan(source_path: Path, output: Path, options: Options) -> Plan:
    """Plan a conversion without writing anything.

    Raises `NemotronError` if the source cannot be read or the model cannot be split as requested.
    `Plan.check` checks the output.
    """
    check_output(output, source=source_path)
    with Source.open(
        source_path,
        ignore=options.ignore,
        ignore_template=options.ignore_template,
        adapters=options.adapters,
    ) as source:
        layout = lay_out(source, options)
        parent = existing_folder(output.absolute().parent)
        read_rate, write_rate = _measure_rates(source, parent)
        is_fp8 = options.precision.weights is Dtype.FP8
        calibration = calibration_cost(source, options.calibration) if is_fp8 else None
        return Plan(
            source=str(source_path),
            adapters=tuple(f"{adapter.name}: {adapter}" for adapter in source.adapters),
            output=output,
            layout=layout,
            shapes={name: tensor.shape for name, tensor in source.tensors.items()},
            to_read=source.nbytes,
            to_write=tensor_bytes(layout),
            missing=missing_bytes(layout, partial_path(output)),
            free=shutil.disk_usage(parent).free,
            memory=PROCESS_BYTES + (options.jobs or MOST_THREADS) * BANDS_PER_JOB * BAND_BYTES,
            read_rate=read_rate,
            write_rate=write_rate,
            calibration=calibration,
        )


def _measure_rates(source: Source, folder: Path) -> tuple[float, float]:
    """Copy some weights durably into an unnamed file.

    Returns the speeds of reading and writing in bytes per second. The weights are read from their
    disk, also if they are in memory.
    """
    copied = 0
    reading = writing = 0.0
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            bands = _sample(source)
            while True:
                start = time.perf_counter()
                band = next(bands, None)
                end = time.perf_counter()
                reading += end - start
                if band is None:
                    break
                copied += file.write(band)
                writing += time.perf_counter() - end
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            writing += time.perf_counter() - start
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=folder) from error
    return copied / reading, copied / writing


def _sample(source: Source) -> Iterator[bytes]:
    """Yield the first bands of the largest tensor, in all about `SAMPLE_BYTES` of them."""
    remaining = SAMPLE_BYTES
    tensor = max(source.tensors.values(), key=lambda tensor: tensor.nbytes)
    for chunk in tensor.chunks:
        source.archive.drop_cached(chunk.member)
        rows = max(1, BAND_BYTES // chunk.pitch)
        for first in range(0, chunk.rows, rows):
            if remaining <= 0:
                return
            band = tensor.read(chunk, first, min(rows, chunk.rows - first)).tobytes()
            remaining -= len(band)
            yield band


def _format_shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
