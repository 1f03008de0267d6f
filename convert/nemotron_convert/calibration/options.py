"""Options of an FP8 calibration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemotron_convert.calibration.data import DEFAULT_LENGTH


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
    device: str = "cpu"
    """Name of the torch device that computes."""
    memory: int = 8 << 30
    """Bytes of hidden states that a process keeps in memory; if there are more, they are kept on
    disk."""


OWN_TEXTS = CalibrationOptions()
