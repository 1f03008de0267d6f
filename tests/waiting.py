"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT = 240


def until(condition: Callable[[], object]) -> None:
    """Until it holds; AssertionError after a generous time."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
