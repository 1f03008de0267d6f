"""A process that ends the engine's process and its workers together.

    python worker_watch.py ENGINE WORKER…

A library may notice the death of a worker late or never, while every request waits for it; and a
worker may outlive an engine's process that was killed, with all the memory that it holds. The
arguments are process ids. This file uses nothing but the standard library, so that it starts at
once and stays small.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

GRACE_SECONDS = 1.0
"""Time in which the library itself may say in better words that a worker has died."""


@contextmanager
def workers_watched(workers: Sequence[int]) -> Iterator[None]:
    """Let this process and the workers with these ids end together, except at the end.

    These are not all that it has started: helpers of a library, such as compilers, end by
    themselves.
    """
    if not workers:
        yield
        return
    ids = [str(os.getpid()), *map(str, workers)]
    with subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *ids], stdin=subprocess.DEVNULL
    ) as watch:
        try:
            yield
        finally:
            watch.kill()


def main() -> None:
    """Wait until one of the processes has ended, and end the others."""
    engine, *workers = map(int, sys.argv[1:])
    ended = _first_to_end([engine, *workers])
    if ended != engine:
        time.sleep(GRACE_SECONDS)
        print(f"nemotron_engine: its worker {ended} has ended", file=sys.stderr, flush=True)
    for process in (engine, *workers):
        if process != ended:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _first_to_end(processes: Sequence[int]) -> int:
    """Return the id of the process that ends first."""
    poll, ids = select.poll(), {}
    for process in processes:
        try:
            file = os.pidfd_open(process)
        except ProcessLookupError:
            return process
        ids[file] = process
        poll.register(file, select.POLLIN)
    ((file, _event), *_others) = poll.poll()
    return ids[file]


if __name__ == "__main__":
    main()
