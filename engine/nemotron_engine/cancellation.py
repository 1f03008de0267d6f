"""Whether anybody still listens to an answer."""

from __future__ import annotations

import time
from typing import Any

LOOK_SECONDS = 0.5


class Listener:
    """The client of one answer.

    Triton tells that it has left only when asked, which takes a way to its process and back: about
    as much as sending a response. So it is asked now and then.
    """

    def __init__(self) -> None:
        self._next_look = time.monotonic() + LOOK_SECONDS

    def has_left(self, asked: Any) -> bool:
        """`asked` is the request or its sender; False also if it was asked just before."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        return bool(asked.is_cancelled())
