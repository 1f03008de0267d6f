"""The watch over the processes that a library has started."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

import psutil

CHECK_SECONDS = 0.5
GRACE_SECONDS = 1.0
"""Time in which the library itself may say in better words that a worker has died."""


def watch_workers() -> None:
    """End this process as soon as one of those ends that it has started by now.

    A library may notice the death of a worker late or never, while every request waits for it. The
    other workers are ended too.
    """
    if workers := psutil.Process().children(recursive=True):
        threading.Thread(target=_watch, args=(workers,), name="worker watch", daemon=True).start()


def _watch(workers: list[psutil.Process]) -> None:
    names = {worker: worker.name() for worker in workers}
    pause = threading.Event()
    while all(map(_runs, workers)):
        pause.wait(CHECK_SECONDS)
    pause.wait(GRACE_SECONDS)
    dead = next(worker for worker in workers if not _runs(worker))
    print(
        f"nemotron_engine: its worker {dead.pid} ({names[dead]}) has ended",
        file=sys.stderr,
        flush=True,
    )
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    os._exit(1)


def _runs(worker: psutil.Process) -> bool:
    try:
        return worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
