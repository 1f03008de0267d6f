"""A model's process ends with its Triton, and with each of its threads."""

from __future__ import annotations

import subprocess
import sys

from tests.waiting import WAIT

BEGIN = """
import os, sys, threading, time, types
triton = sys.modules["triton_python_backend_utils"] = types.ModuleType("triton")
triton.Logger = types.SimpleNamespace(log_error=lambda text: print("log:", text, flush=True))
from nemotron_engine.triton import watchdog
watchdog.POLL_SECONDS = watchdog.FINALIZE_SECONDS = 0.05
"""
WATCH = """
watchdog.start_watchdog()
print("watching", flush=True)
"""
PARENT_IS_TRITON = 'watchdog.TRITON = open(f"/proc/{os.getppid()}/comm").read().strip()'
MODEL = BEGIN + PARENT_IS_TRITON + WATCH
SLEEP = "time.sleep(1000)"
TRITON = f"""
import subprocess, sys
from tests.waiting import WAIT
model = subprocess.Popen([sys.executable, "-c", {MODEL + SLEEP!r}], stdout=subprocess.PIPE)
assert model.stdout.readline() == b"watching\\n"
"""


def test_a_model_that_sleeps_ends_after_its_triton() -> None:
    """The model has the pipe of standard error too, so the pipe ends when the model ends."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRITON],
        stderr=subprocess.PIPE,
        check=False,
        timeout=WAIT,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_model_whose_triton_was_killed_before_it_looked_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + WATCH + SLEEP],
        capture_output=True,
        check=False,
        timeout=WAIT,
    )
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_model_ends_that_waits_with_the_interpreters_lock() -> None:
    wait = "import ctypes\nctypes.PyDLL(None).sleep(1000)"
    begin = MODEL.replace(WATCH, "\nwatchdog.LOCKED_SECONDS = 1.0" + WATCH)
    done = subprocess.run(
        [sys.executable, "-c", begin + wait],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert (done.returncode, done.stdout) == (1, "watching\n")
    assert "Timeout" in done.stderr


def test_a_model_ends_with_any_of_its_threads() -> None:
    die = 'threading.Thread(target=lambda: 1 / 0, name="sender").start()\n'
    done = subprocess.run(
        [sys.executable, "-c", MODEL + die + SLEEP],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert done.returncode == 1
    assert done.stdout == "watching\nlog: a thread has died: division by zero\n"
    assert "ZeroDivisionError" in done.stderr
