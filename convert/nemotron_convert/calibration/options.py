"""Options of an FP8 calibration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CALIBRATION_NAME = "calibration.json"
"""Name of the record of a calibration in a checkpoint."""
BUILT_IN_NAME = "built-in texts"
"""What records call the project's own texts: no name of a file of a user's."""
DEFAULT_LENGTH = 512
"""Largest number of tokens taken from each text, as in NVIDIA's own calibration."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Source of the scales of an FP8 conversion.

    At most one of `scales`, `texts` and `ids` may be set; if none is, the project's own texts are
    used.
    """

    scales: Path | None = None
    """A `calibration.json` of an earlier run."""
    texts: Path | None = None
    """A JSONL file of texts or conversations."""
    ids: Path | None = None
    """A JSON file of lists of token ids."""
    length: int = DEFAULT_LENGTH
    """Largest number of tokens taken from each text."""
    devices: str = "auto"
    """The torch devices that compute: `auto`, `cpu`, `cuda` or a list such as `cuda:0,cuda:2`."""
    memory: int = 8 << 30
    """Bytes of hidden states that a process keeps in the CPU's memory. If there are more, they are
    kept on disk, unless the devices are GPUs that hold them beside two layers."""


OWN_TEXTS = CalibrationOptions()
