"""Libraries that only some inputs, outputs and runners need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from nemotron_core.errors import NemotronError


def require(name: str, extra: str = "data") -> ModuleType:
    """Import a library of an extra. Raises `NemotronError` if it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise NemotronError(
            f"{name.partition('.')[0]} is not installed",
            remedy=f"pip install 'nemotron-triton[{extra}]'",
        ) from error
