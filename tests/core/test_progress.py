"""Progress on a terminal and in a log, and what it loads."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

CODE = """
import sys
from nemotron_core import progress
progress.BAR_SECONDS = {seconds}
with progress.byte_progress("copying", 100) as report:
    report(60)
    report(40)
print("rich.progress" in sys.modules)
"""


def run_on_a_terminal(seconds: float) -> tuple[str, str]:
    """Return standard output and what was written to the terminal, which is standard error."""
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", CODE.format(seconds=seconds)],
            stdout=subprocess.PIPE,
            stderr=follower,
            text=True,
            check=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
        )
        os.set_blocking(leader, False)
        try:
            shown = os.read(leader, 1 << 16).decode()
        except BlockingIOError:
            shown = ""
        return done.stdout.strip(), shown
    finally:
        os.close(leader)
        os.close(follower)


def test_a_bar_appears_only_for_what_takes_long() -> None:
    """And only then its library is loaded, which takes longer than a small conversion's start."""
    assert run_on_a_terminal(60) == ("False", "")
    loaded, shown = run_on_a_terminal(0)
    assert loaded == "True"
    assert "copying" in shown
    assert "100/100 bytes" in shown


def test_a_log_gets_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nemotron_core import progress

    clock = iter([0.0, 4.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.byte_progress("copying", 4000) as report:
        report(1000)
        report(2000)
    assert capsys.readouterr().err == "copying: 3.0 kB of 4.0 kB, 250 bytes/s, 4 s left\n"
