"""Responses are spaced by what they cost, and one stall is no cost."""

from __future__ import annotations

import pytest

from nemotron_engine.pace import FIRST_COST, LONGEST, SHARE, Pace


def settle(pace: Pace, cost: float) -> float:
    """The space after many responses of that cost."""
    for _ in range(300):
        space = pace.next_send(0.0, cost)
    return space


@pytest.mark.parametrize("running", [1, 8, 128])
@pytest.mark.parametrize("cost", [1e-5, 1e-4, 1e-3])
def test_sending_takes_its_share_of_the_time(running: int, cost: float) -> None:
    pace = Pace()
    pace.running = running
    space = settle(pace, cost)
    assert space == pytest.approx(min(running * cost / SHARE, LONGEST), rel=0.01)


def test_a_stall_does_not_hold_back_what_follows() -> None:
    pace = Pace()
    pace.running = 1
    settle(pace, FIRST_COST)
    assert pace.next_send(0.0, 10.0) < 2 * FIRST_COST / SHARE


def test_the_spaces_follow_a_lasting_cost() -> None:
    pace = Pace()
    pace.running = 4
    settle(pace, 1e-4)
    assert settle(pace, 1e-2) == pytest.approx(4 * 1e-2 / SHARE, rel=0.01)
