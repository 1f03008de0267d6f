"""Every example in a docstring of the product runs and prints what it shows."""

from __future__ import annotations

import doctest
import importlib
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    *("core", "convert", "build", "engine", "serve", "gateway", "client", "data", "evaluate"),
    "bench",
)


def modules_with_examples() -> list[str]:
    """Return the names of all product modules that contain a doctest prompt."""
    return [
        ".".join(path.relative_to(ROOT / room).with_suffix("").parts).removesuffix(".__init__")
        for room in ROOMS
        for path in sorted((ROOT / room).glob("nemotron_*/**/*.py"))
        if ">>> " in path.read_text()
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_a_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only Triton has this module, which the Triton models' code imports.
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", MagicMock())
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_there_are_examples() -> None:
    assert len(modules_with_examples()) > 5
