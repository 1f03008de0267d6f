"""The table of the lanes' engines, and the function that opens an engine folder."""

from __future__ import annotations

import pkgutil
from pathlib import Path

from nemotron_engine.engine import Engine

ADAPTERS = {
    "cpu": "nemotron_engine.cpu:CpuEngine",
    "pytorch": "nemotron_engine.pytorch:PyTorchEngine",
}
"""Class of each lane's engine. It is a name, so that only the lane in use loads its libraries."""


def open_engine(lane: str, folder: Path) -> Engine:
    """Start the engine of a folder that `nemotron build` wrote."""
    engine: Engine = pkgutil.resolve_name(ADAPTERS[lane])(folder)
    return engine
