"""A model's process ends with its Triton."""

from __future__ import annotations

import subprocess
import sys

from tests.waiting import WAIT

MODEL = """
import time
from nemotron_engine.triton import watchdog
watchdog.POLL_SECONDS = watchdog.FINALIZE_SECONDS = 0.05
watchdog.start_watchdog()
print("watching", flush=True)
time.sleep(1000)
"""
TRITON = f"""
import subprocess, sys
from tests.waiting import WAIT
model = subprocess.Popen([sys.executable, "-c", {MODEL!r}], stdout=subprocess.PIPE)
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
