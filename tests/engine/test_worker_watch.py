"""The engine's process and its workers end together."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tests.waiting import WAIT, until

ENGINE = """
import subprocess, sys, time
from nemotron_engine.worker_watch import workers_watched
workers = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
with workers_watched([worker.pid for worker in workers]):
    print(*(worker.pid for worker in workers), flush=True)
    if sys.argv[1:]:
        sys.stdin.read()
    else:
        time.sleep(1000)
for worker in workers:
    worker.kill()
"""


def engine(*arguments: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(
        process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes
    )


@pytest.mark.parametrize("is_worker", [True, False])
def test_the_death_of_one_is_the_end_of_all(is_worker: bool) -> None:
    process, workers = engine()
    victim = workers[0] if is_worker else psutil.Process(process.pid)
    victim.kill()
    _, errors = process.communicate(timeout=WAIT)
    assert process.returncode == -9
    until(lambda: are_gone(workers))
    expected = f"nemotron_engine: its worker {workers[0].pid} has ended\n" if is_worker else ""
    assert errors == expected


def test_at_the_end_nobody_is_watched() -> None:
    process, workers = engine("ends")
    _, errors = process.communicate("", timeout=WAIT)
    assert (process.returncode, errors) == (0, "")
    assert are_gone(workers)
