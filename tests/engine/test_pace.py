"""Responses are sent in bursts, spaced by their cost; a single stall does not count."""

from __future__ import annotations

import pytest

from nemotron_core.wire import Lane
from nemotron_engine.pace import INITIAL_COST, MAX_SECONDS, MIN_SECONDS, SENDING_FRACTIONS, Pace


def settled(lane: Lane, cost: float) -> Pace:
    """A pace that has seen many responses of that cost."""
    pace = Pace(lane)
    settle(pace, cost)
    return pace


def settle(pace: Pace, cost: float) -> None:
    for _ in range(300):
        pace.record_cost(cost)


def space(pace: Pace, running: int, start: float = 1000.0) -> float:
    """Seconds from a burst at `start` to the next, to a thousandth of the longest."""
    first = pace.burst(start, running)
    ticks = range(1, 1001)
    return next(
        tick * MAX_SECONDS / 1000
        for tick in ticks
        if pace.burst(start + (tick + 0.01) * MAX_SECONDS / 1000, running) > first
    )


@pytest.mark.parametrize("lane", SENDING_FRACTIONS)
@pytest.mark.parametrize("running", [1, 8, 128])
@pytest.mark.parametrize("cost", [1e-4, 1e-3, 1e-2])
def test_sending_takes_its_share_of_the_time(lane: Lane, running: int, cost: float) -> None:
    expected = min(max(running * cost / SENDING_FRACTIONS[lane], MIN_SECONDS[lane]), MAX_SECONDS)
    actual = space(settled(lane, cost), running)
    assert actual == pytest.approx(expected, rel=0.02, abs=MAX_SECONDS / 500)


def test_an_answer_is_sent_once_in_a_burst() -> None:
    pace = settled("pytorch", 1e-3)
    first = pace.burst(1000.0, 8)
    assert {pace.burst(1000.0 + n * 1e-3, 8) for n in range(16)} == {first}
    assert pace.burst(1000.017, 8) == first + 1


def test_a_stall_does_not_hold_back_what_follows() -> None:
    pace = settled("pytorch", INITIAL_COST)
    before = space(pace, 100)
    pace.record_cost(10.0)
    assert space(pace, 100, 2000.0) < 1.5 * before


def test_the_spaces_follow_a_lasting_cost() -> None:
    pace = settled("pytorch", 1e-4)
    settle(pace, 1e-2)
    assert space(pace, 4) == pytest.approx(4 * 1e-2 / SENDING_FRACTIONS["pytorch"], rel=0.02)
