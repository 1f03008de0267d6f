"""What a calibration will cost on this machine, from a short measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass

from nemotron_convert.calibration.calibrator import Calibrator
from nemotron_convert.calibration.options import CalibrationOptions
from nemotron_convert.source.nemo import Source
from nemotron_convert.team import ALONE
from nemotron_convert.tensor_map import LINEARS
from nemotron_core.errors import NemotronError

LIBRARY_BYTES = 1 << 30
"""Memory that torch and a batch's intermediate results take."""
HIDDEN_FILES = 2
"""Number of files of hidden states on disk: those of the last layer and of the one before."""
MATRIX = 1024
"""Rows and columns of the matrices that are multiplied to measure the speed."""
MEASURED_SECONDS = 0.3


@dataclass(frozen=True)
class CalibrationCost:
    """A calibration that has not started. Sizes are in bytes."""

    tokens: int
    built_in: bool
    """Whether the texts are the project's own."""
    device: str
    flop: float
    """Floating-point operations of the linear layers."""
    flops: float
    """Measured operations per second of the device in BF16."""
    to_read: int
    """Bytes of the linear layers, which are read once more than without a calibration."""
    memory: int
    disk: int
    """Bytes of hidden states that are kept on disk meanwhile."""

    def seconds(self, read_rate: float) -> float:
        """Return the estimated duration if the source is read at `read_rate` bytes per second."""
        return self.flop / self.flops + self.to_read / read_rate


def calibration_cost(source: Source, options: CalibrationOptions) -> CalibrationCost | None:
    """Return the cost of a calibration, or `None` if an earlier one is used.

    Raises `NemotronError` if the texts cannot be read or the device cannot be used.
    """
    calibrator = Calibrator(source, options, ALONE)
    tokens = calibrator.tokens
    if not tokens:
        return None
    config = source.config
    layer = sum(source.tensors[name].layer_bytes for name in LINEARS)
    hidden = 2 * tokens * config.hidden_size
    in_memory = hidden <= options.memory
    return CalibrationCost(
        tokens=tokens,
        built_in=bool(calibrator.built_in_tokens),
        device=options.device,
        flop=2.0 * (layer // 2) * config.num_layers * tokens,
        flops=_measure_flops(options.device),
        to_read=layer * config.num_layers,
        memory=LIBRARY_BYTES + 2 * layer + (hidden if in_memory else 0),
        disk=HIDDEN_FILES * hidden,
    )


def _measure_flops(device: str) -> float:
    """Return the BF16 operations per second of a device."""
    import torch  # noqa: PLC0415 - only a plan of an FP8 conversion needs it

    try:
        matrix = torch.ones((MATRIX, MATRIX), dtype=torch.bfloat16, device=device)

        def multiply() -> None:
            float((matrix @ matrix.T)[0, 0])  # the number is there when the device is done

        multiply()  # the first time takes longer
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < MEASURED_SECONDS:
            multiply()
            count += 1
    except (RuntimeError, AssertionError) as error:
        raise NemotronError(
            f"the device {device!r} cannot be used: {str(error).splitlines()[0]}",
            where="--device",
            remedy="use cpu",
        ) from error
    return 2.0 * MATRIX**3 * count / (time.perf_counter() - start)
