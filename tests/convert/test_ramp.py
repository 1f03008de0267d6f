"""The number of copying threads on disks that take one, a few or many."""

from __future__ import annotations

import pytest

from nemotron_convert.target import ramp
from nemotron_convert.target.ramp import Ramp


def threads_on(disk: int, monkeypatch: pytest.MonkeyPatch, cores: int = 16) -> list[int]:
    """Return the numbers of threads over ten windows, on a disk that `disk` threads keep busy."""
    monkeypatch.setattr(ramp, "MOST_THREADS", 2 * cores)
    copying = Ramp()
    copying.begin(100.0)
    numbers, done = [copying.threads], 0
    for window in range(1, 11):
        done += 1000 * min(copying.threads, disk)
        before = copying.threads
        assert copying.more(done, 100.0 + window * ramp.WINDOW_SECONDS) == (
            copying.threads - before
        )
        numbers.append(copying.threads)
    return numbers


def test_threads_are_added_as_long_as_they_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step is the one that did not help."""
    assert threads_on(3, monkeypatch) == [4, *[8] * 10]
    assert threads_on(8, monkeypatch) == [4, 8, *[16] * 9]
    assert threads_on(99, monkeypatch) == [4, 8, 16, *[32] * 8]
    assert threads_on(99, monkeypatch, cores=3) == [4, *[6] * 10]
    assert threads_on(99, monkeypatch, cores=1) == [2] * 11


def test_a_users_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    copying = Ramp(fixed=3)
    copying.begin(0.0)
    assert [copying.more(10**9 * second, float(second)) for second in range(1, 5)] == [0] * 4
    assert copying.threads == 3


def test_a_short_window_says_nothing() -> None:
    copying = Ramp()
    copying.begin(0.0)
    assert copying.more(10**9, ramp.WINDOW_SECONDS / 2) == 0
