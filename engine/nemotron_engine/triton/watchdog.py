"""A watchdog that ends a model's process with its Triton, and with any of its own threads."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils

TRITON = "tritonserver"
"""Name of Triton's program, which starts every model's process itself."""
POLL_SECONDS = 1.0
LOCKED_SECONDS = 20.0
"""Time without any Python code after which the process ends. Triton's functions hold the
interpreter's lock while they wait for Triton, for ever if it is killed meanwhile. A process that
was stopped for as long, as by `docker pause`, may end too when it continues; `nemotron serve` then
starts Triton again."""
FINALIZE_SECONDS = 5.0
"""Time that a model has to end by itself after its Triton has ended."""


def start_watchdog() -> None:
    """Watch Triton from a thread, and report crashes of this process in Triton's log.

    Every model calls this first in `initialize`. The threads of a model would otherwise keep its
    process when Triton dies. From then on the death of any thread ends the process.
    """
    faulthandler.enable()
    threading.excepthook = _end_with_thread
    triton = os.getppid()
    if Path(f"/proc/{triton}/comm").read_text().strip() != TRITON:
        os._exit(1)  # it was killed before, and this process was given to another parent
    threading.Thread(target=_end_with_triton, args=(triton,), name="watchdog", daemon=True).start()


def _end_with_triton(triton: int) -> None:
    while os.getppid() == triton:
        faulthandler.dump_traceback_later(LOCKED_SECONDS, exit=True)  # needs no lock
        time.sleep(POLL_SECONDS)
    time.sleep(FINALIZE_SECONDS)
    os._exit(1)


def _end_with_thread(arguments: threading.ExceptHookArgs) -> None:
    """End this process when one of its threads has died, which would otherwise go unnoticed.

    `nemotron serve` sees that and starts Triton again.
    """
    threading.__excepthook__(arguments)
    pb_utils.Logger.log_error(f"a thread has died: {arguments.exc_value}")
    os._exit(1)
