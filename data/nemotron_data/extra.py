"""Libraries that only some inputs and outputs need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from nemotron_core.errors import NemotronError


def require(name: str) -> ModuleType:
    """Import a library of the extra `data`. Raises `NemotronError` if it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise NemotronError(
            f"{name.partition('.')[0]} is not installed",
            remedy="pip install 'nemotron-triton[data]'",
        ) from error
