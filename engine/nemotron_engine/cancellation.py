"""Detection of clients that cancelled or disconnected."""

from __future__ import annotations

import time
from typing import Any

POLL_SECONDS = 0.5


class CancellationPoll:
    """Polls Triton for the cancellation of one request, at most every `POLL_SECONDS`.

    Triton does not report a cancellation by itself. A poll goes to Triton's process and back, which
    takes about as long as sending a response.
    """

    def __init__(self) -> None:
        self._next_poll = time.monotonic() + POLL_SECONDS

    def is_cancelled(self, source: Any) -> bool:
        """Return whether this call polled Triton and found the request cancelled.

        `source` is Triton's request or its response sender.
        """
        now = time.monotonic()
        if now < self._next_poll:
            return False
        self._next_poll = now + POLL_SECONDS
        return bool(source.is_cancelled())
