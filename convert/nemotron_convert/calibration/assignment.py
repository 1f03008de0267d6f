"""Which device calibrates which sequences, and how it uses its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from nemotron_convert.calibration.devices import device_memory, open_devices
from nemotron_convert.calibration.layer_weights import layer_nbytes
from nemotron_convert.calibration.memory import MemoryPlan, Room, plan_memory
from nemotron_convert.calibration.options import CalibrationOptions
from nemotron_convert.source.nemo import Source
from nemotron_convert.team import Team


@dataclass(frozen=True)
class Assignment:
    """The part of a calibration that one process computes."""

    devices: tuple[torch.device, ...]
    sequences: tuple[Sequence[int], ...]
    """This process's sequences of token ids by length: equal lengths are computed together."""
    parts: tuple[list[int], ...]
    """Lengths of the consecutive sequences that each device computes."""
    plan: MemoryPlan

    @property
    def tokens(self) -> int:
        """Number of tokens in this process's sequences."""
        return sum(map(sum, self.parts))

    @property
    def starts(self) -> tuple[int, ...]:
        """Number of the first token of each device."""
        return tuple(accumulate(map(sum, self.parts[:-1]), initial=0))


def assign(
    source: Source, sequences: Sequence[Sequence[int]], options: CalibrationOptions, team: Team
) -> Assignment:
    """Divide all processes' sequences over them, and this process's over its devices.

    Raises `NemotronError` if a device cannot be used or has too little memory.
    """
    devices = open_devices(options.devices, team)
    own_sequences = sorted(sequences[team.rank :: team.size], key=len)
    lengths = list(map(len, own_sequences))
    parts = divide_evenly(lengths, len(devices))
    devices = devices[: len(parts)]
    width = source.config.hidden_size
    plan = plan_memory(
        source.config,
        layer_nbytes(source),
        [
            Room(free, device.type != "cpu", 2 * sum(part) * width)
            for free, device, part in zip(device_memory(devices, team), devices, parts, strict=True)
        ],
        longest=max(lengths),
        states_limit=options.memory,
    )
    return Assignment(tuple(devices), tuple(own_sequences), tuple(parts), plan)


def divide_evenly(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Return the lengths as at most `count` consecutive parts of about as many tokens each.

    >>> divide_evenly([1, 1, 2, 2, 3, 3], 2)
    [[1, 1, 2, 2], [3, 3]]
    >>> divide_evenly([5], 2)
    [[5]]
    """
    total = sum(lengths)
    parts: dict[int, list[int]] = {}
    for end, length in zip(accumulate(lengths), lengths, strict=True):
        middle = end - length / 2
        parts.setdefault(int(count * middle / total), []).append(length)
    return list(parts.values())
