"""The memory of a calibration, and what of it stays on the devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig

USABLE = 0.9
"""Fraction of the free memory that is planned for; the rest is for the libraries' own buffers."""
GPU_BATCH_TOKENS = 16384
"""Largest number of tokens of a batch on a GPU: matrix products gain nothing from more."""
CPU_BATCH_BYTES = 1 << 30
"""Intermediate results of a batch on a CPU, which computes large and small batches as fast."""


class Place(Enum):
    """Where the hidden states are between two layers."""

    DEVICE = "on the device"
    MEMORY = "in the CPU's memory"
    DISK = "on disk"


@dataclass(frozen=True)
class Room:
    """What one device offers and what its part of the sequences needs, in bytes."""

    free: int
    """Free memory; of a device that several workers use, this one's part."""
    is_gpu: bool
    states: int
    """Hidden states of its sequences."""


@dataclass(frozen=True)
class MemoryPlan:
    """How the devices use their memory. It is the same on all devices of a process."""

    slots: int
    """Layers that are held at a time: 2 if one can be read while another is computed."""
    place: Place
    batch_tokens: int


def token_bytes(config: ModelConfig) -> int:
    """Return an upper estimate of the bytes of a layer's intermediate results, for one token.

    The attention holds the hidden states in F32 twice, queries, keys and values in BF16 and while
    they are rotated in F32, and keys and values once for each query head. The MLP holds hidden
    states in F32 five times, its wide result in BF16 twice. A quarter is added for alignment.
    """
    hidden, heads = config.hidden_size, config.num_heads * config.head_size
    attention = 8 * hidden + 2 * config.qkv_rows + 16 * heads
    mlp = 20 * hidden + 4 * config.intermediate_size
    return max(attention, mlp) * 5 // 4


def plan_memory(
    config: ModelConfig,
    layer_bytes: int,
    rooms: Sequence[Room],
    *,
    longest: int,
    states_limit: int,
) -> MemoryPlan:
    """Return a plan for a process's devices, limited by the one with the least room.

    `longest` is the number of tokens of the longest sequence, which is never divided.
    `states_limit` is the number of bytes of hidden states that may be in the CPU's memory. Raises
    `NemotronError` if a layer and one sequence do not fit.
    """
    per_token = token_bytes(config)
    is_gpu = all(room.is_gpu for room in rooms)
    total_states = sum(room.states for room in rooms)
    usable = min(int(room.free * USABLE) for room in rooms)
    least = longest * per_token
    if usable < layer_bytes + least:
        raise NemotronError(
            f"calibration needs {layer_bytes + least:,} bytes of memory for one layer and one "
            f"sequence, {usable:,} are free",
            where="--devices",
            remedy="end other programs, name another device, or shorten the texts "
            "(--calibrate-length)",
        )
    wanted = GPU_BATCH_TOKENS if is_gpu else CPU_BATCH_BYTES // per_token
    wanted = max(longest, wanted)
    place = Place.DISK
    largest_states = max(room.states for room in rooms)
    can_hold_states = usable >= 2 * layer_bytes + largest_states + least
    if is_gpu and can_hold_states:
        place = Place.DEVICE
    elif total_states <= states_limit and (is_gpu or can_hold_states):
        place = Place.MEMORY
    if place is Place.DEVICE or (place is Place.MEMORY and not is_gpu):
        usable -= largest_states
    slots = 2 if usable >= 2 * layer_bytes + least else 1
    room_for_batch = (usable - slots * layer_bytes) // per_token
    return MemoryPlan(slots, place, min(wanted, max(longest, room_for_batch)))
