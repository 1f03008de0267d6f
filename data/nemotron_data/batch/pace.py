"""How many requests run at once, and how many a minute: pure logic, told the time by its caller."""

from __future__ import annotations

import math

GAIN = 0.25
"""A step up pays if at least this share of it becomes throughput."""
STEP = 0.125
"""Of the limit, once doubling no longer pays."""
HOLD = 4
"""Rounds without a try after one that did not pay; it doubles up to `LONGEST_HOLD`."""
LONGEST_HOLD = 32


class Concurrency:
    """A limit that grows while latency holds, and is halved when the server is overloaded.

    A round is as many answers as the limit. With a latency of so many seconds per token, the limit
    divided by it is the throughput (Little's law). While a server has room, more requests at once
    hardly make any of them slower; when it has none they wait for each other. So a step up is kept
    if latency grew clearly less than the limit, and taken back if not; doubling at first, later an
    eighth at a time, and tried again after some rounds, for servers change.
    """

    def __init__(self, most: int, first: int = 4) -> None:
        self.most = most
        self.limit = min(first, most)
        self._doubling = True
        self._base: tuple[int, float] | None = None
        """The limit and the latency before the last step up; None: no step is on trial."""
        self._hold = 0
        self._next_hold = HOLD
        self._begin_round()

    def answered(self, seconds: float, tokens: int, asked_at: int) -> None:
        """A request that was sent when the limit was `asked_at` took so long for its tokens."""
        if asked_at != self.limit:
            return  # it tells of another limit
        self._answers += 1
        self._seconds += seconds
        self._tokens += max(1, tokens)
        if self._answers >= self.limit:
            self._judge(self._seconds / self._tokens)
            self._begin_round()

    def overloaded(self, asked_at: int) -> None:
        """The server refused one: half of it, once for all that were sent at that limit."""
        if asked_at == self.limit:
            self.limit = max(1, self.limit // 2)
            self._doubling = False
            self._base = None
            self._hold = HOLD
            self._begin_round()

    def _begin_round(self) -> None:
        self._answers, self._seconds, self._tokens = 0, 0.0, 0

    def _judge(self, latency: float) -> None:
        if self._base is not None:
            limit, before = self._base
            self._base = None
            growth = self.limit / limit - 1
            if latency > before * (1 + (1 - GAIN) * growth):
                self.limit = limit
                self._doubling = False
                self._hold = self._next_hold
                self._next_hold = min(LONGEST_HOLD, 2 * self._next_hold)
                return
            self._next_hold = HOLD
        if self._hold > 0:
            self._hold -= 1
        elif self.limit < self.most:
            self._base = self.limit, latency
            larger = 2 * self.limit if self._doubling else self.limit + max(1, self.limit * STEP)
            self.limit = min(self.most, int(larger))


class Bucket:
    """So much a minute: it holds a tenth of that at most, so a burst is short.

    What is taken is an estimate, corrected when the true amount is known; it may then owe some.
    """

    def __init__(self, per_minute: float | None, now: float) -> None:
        self._rate = math.inf if per_minute is None else per_minute / 60
        self._most = max(1.0, self._rate * 6)
        self._level = self._most
        self._then = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; for more than it holds, until it is full."""
        if math.isinf(self._rate):
            return 0.0
        self._level = min(self._most, self._level + (now - self._then) * self._rate)
        self._then = now
        return max(0.0, (min(amount, self._most) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Less than nothing gives back."""
        self._level -= amount


def backoff(attempt: int, first: float, longest: float, draw: float) -> float:
    """Seconds before the next attempt, after so many; `draw` (0 to 1) spreads them.

    >>> [backoff(attempt, 0.5, 10, 1.0) for attempt in range(1, 7)]
    [0.5, 1.0, 2.0, 4.0, 8.0, 10]
    """
    return min(longest, first * 2.0 ** (attempt - 1)) * (0.5 + draw / 2)
