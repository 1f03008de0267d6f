"""What a calibration will cost on this machine, from a short measurement."""

from __future__ import annotations

from dataclasses import dataclass

from nemotron_convert.calibration.calibrator import Calibrator
from nemotron_convert.calibration.options import CalibrationOptions
from nemotron_convert.source.nemo import Source
from nemotron_convert.source.number_types import BF16_BYTES
from nemotron_convert.team import ALONE

HIDDEN_FILES = 2
"""Number of files of hidden states on disk: those of the last layer and of the one before."""


@dataclass(frozen=True)
class CalibrationCost:
    """A calibration that has not started. Sizes are in bytes."""

    tokens: int
    built_in: bool
    """Whether the texts are the project's own."""
    devices: tuple[str, ...]
    flop: float
    """Floating-point operations of the linear layers."""
    flops: float
    """Measured operations per second of all devices together."""
    to_read: int
    """Bytes of the linear layers, which are read once more than without a calibration."""
    device_memory: int
    """Memory of each device, which may be the CPU."""
    memory: int
    """Memory of the CPU beside that."""
    states: str
    """Where the hidden states are between two layers."""
    disk: int
    """Bytes on disk meanwhile: hidden states, and the content of a compressed archive."""

    def seconds(self, read_rate: float) -> float:
        """Return the estimated duration if the source is read at `read_rate` bytes per second.

        A layer is read while the one before is computed.
        """
        return max(self.flop / self.flops, self.to_read / read_rate)


def calibration_cost(source: Source, options: CalibrationOptions) -> CalibrationCost | None:
    """Return the cost of a calibration, or `None` if an earlier one is used.

    Raises `NemotronError` if the texts cannot be read, or a device cannot be used or is too small.
    """
    calibrator = Calibrator(source, options, ALONE)
    tokens = calibrator.tokens
    if not tokens:
        return None
    # Imported here because torch takes seconds to load and no other plan needs it.
    from nemotron_convert.calibration.assignment import assign  # noqa: PLC0415
    from nemotron_convert.calibration.devices import measure_products  # noqa: PLC0415
    from nemotron_convert.calibration.layer_feed import READERS, STAGE_BYTES  # noqa: PLC0415
    from nemotron_convert.calibration.layer_weights import layer_nbytes  # noqa: PLC0415
    from nemotron_convert.calibration.memory import Place, token_bytes  # noqa: PLC0415

    config, layer = source.config, layer_nbytes(source)
    assignment = assign(source, calibrator.sequences, options, ALONE)
    plan = assignment.plan
    token_states = BF16_BYTES * config.hidden_size
    states = tokens * token_states
    resident = max(map(sum, assignment.parts)) * token_states if plan.place is Place.DEVICE else 0
    return CalibrationCost(
        tokens=tokens,
        built_in=bool(calibrator.built_in_tokens),
        devices=tuple(map(str, assignment.devices)),
        flop=2.0 * (layer // BF16_BYTES) * config.num_layers * tokens,
        flops=sum(map(measure_products, assignment.devices)),
        to_read=layer * config.num_layers,
        device_memory=plan.slots * layer + plan.batch_tokens * token_bytes(config) + resident,
        memory=READERS * STAGE_BYTES + (states if plan.place is Place.MEMORY else 0),
        states=plan.place.value,
        disk=HIDDEN_FILES * states + (source.nbytes if source.archive.sequential else 0),
    )
