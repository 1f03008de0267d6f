"""A watchdog that ends a model's process when its Triton has ended."""

from __future__ import annotations

import faulthandler
import os
import threading
import time

POLL_SECONDS = 1.0
FINALIZE_SECONDS = 5.0
"""Time that a model has to end by itself after its Triton has ended."""


def start_watchdog() -> None:
    """Watch Triton from a thread, and report crashes of this process in Triton's log.

    Every model calls this first in `initialize`. A model that waits for another model's response
    would otherwise wait forever when Triton dies.
    """
    faulthandler.enable()
    threading.Thread(
        target=_end_with_triton, args=(os.getppid(),), name="watchdog", daemon=True
    ).start()


def _end_with_triton(triton: int) -> None:
    while os.getppid() == triton:
        time.sleep(POLL_SECONDS)
    time.sleep(FINALIZE_SECONDS)
    os._exit(1)
