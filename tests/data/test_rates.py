"""The limits per minute, with a clock that only a test moves."""

from __future__ import annotations

import pytest

from nemotron_data.batch.rates import EXPECTED_TOKENS, Rates


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_without_limits_nothing_waits() -> None:
    rates = Rates(None, None, Clock())
    for _ in range(100):
        assert rates.wait() == 0
        rates.settle(rates.take(), 10**6)


def test_requests_per_minute() -> None:
    clock = Clock()
    rates = Rates(60, None, clock)
    for _ in range(6):
        assert rates.wait() == 0
        rates.take()
    assert rates.wait() == 1
    clock.now += 1
    assert rates.wait() == 0


def test_the_first_requests_take_the_expected_tokens() -> None:
    rates = Rates(None, 600, Clock())
    assert rates.take() == EXPECTED_TOKENS
    assert rates.wait() == EXPECTED_TOKENS / 10  # until the bucket of 60 is full again


def test_later_requests_take_the_mean_of_the_answers() -> None:
    rates = Rates(None, 600, Clock())
    rates.settle(rates.take(), 30)  # leaves 30 of 60
    assert rates.take() == 30
    assert rates.wait() == 3
    rates.settle(30, 6)
    assert rates.expected_tokens == 18


def test_a_failed_request_gives_its_tokens_back() -> None:
    rates = Rates(None, 600, Clock())
    for _ in range(3):
        assert rates.wait() == 0
        rates.settle(rates.take(), None)
    assert rates.expected_tokens == EXPECTED_TOKENS


def test_a_request_that_reports_no_tokens_used_none() -> None:
    rates = Rates(None, 600, Clock())
    for _ in range(3):
        rates.settle(rates.take(), 0)
    assert rates.expected_tokens == 0
    rates.settle(rates.take(), 60)  # empties the bucket
    assert rates.wait() == pytest.approx(1.5)  # the mean is 15
