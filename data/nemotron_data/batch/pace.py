"""The pace of requests: concurrency, rates and backoff as pure logic; callers pass the time."""

from __future__ import annotations

import math

FIRST_LIMIT = 20
"""Number of requests at once before the first answer."""
FACTOR = 4
"""Growth of the limit at each step while it is being opened."""
QUICK_ANSWERS = 8
"""Number of answers that decide about a step while the limit is being opened."""
GAIN = 0.25
"""A step up is kept if the throughput grows by at least this fraction of the step."""
STEP = 0.125
"""Size of a step as a fraction of the limit, once it has been opened."""
HOLD = 4
"""Number of rounds without a step after a step that failed. It doubles with each further failure,
up to `LONGEST_HOLD`."""
LONGEST_HOLD = 32


class Concurrency:
    """A limit on concurrent requests that grows while latency holds, and halves under overload.

    With the latency in seconds per token, the limit divided by the latency is the throughput
    (Little's law). While a server has room, more requests at once hardly slow each other down; when
    it has none, they wait for each other. So a step up is kept if latency grew clearly less than
    the limit, and taken back if not.

    The limit is opened first: from `FIRST_LIMIT` it is multiplied by `FACTOR` as soon as a few
    answers allow it, so a server is full after two or three latencies. This ends when a step fails,
    when the server is overloaded, or at the maximum. From then on a whole round of answers, as many
    as the limit, decides about each step, also about the last ones of the opening, and a step is an
    eighth of the limit. A step that failed is tried again after some rounds, because a server's
    load changes.

    `known` is the limit that an earlier run found: it is opened with the first answer.
    """

    def __init__(self, maximum: int, *, first: int = FIRST_LIMIT, known: int | None = None) -> None:
        self.maximum = maximum
        self.limit = min(first, maximum)
        self._known = known
        self._is_opening = True
        self._steps: list[tuple[int, float]] = []
        """Limit and latency before each step up that is still on trial, the last one at the end."""
        self._hold = 0
        self._next_hold = HOLD
        self._start_round()

    @property
    def proven_limit(self) -> int:
        """The limit without the last step, if that is still on trial."""
        return self._steps[-1][0] if self._steps else self.limit

    def record_answer(self, seconds: float, tokens: int, limit_when_sent: int) -> None:
        """Record the duration and the tokens of a request that was sent at `limit_when_sent`."""
        if self._known is not None:
            self.limit, self._known = min(self.maximum, max(self.limit, self._known)), None
        if limit_when_sent != self.limit:
            return  # its latency belongs to another limit
        self._answers += 1
        self._seconds += seconds
        self._tokens += max(1, tokens)
        needed = min(self.limit, QUICK_ANSWERS) if self._is_opening else self.limit
        if self._answers >= needed:
            self._end_round(self._seconds / self._tokens)
            self._start_round()

    def record_overload(self, limit_when_sent: int) -> None:
        """Halve the limit, once for all refused requests that were sent at the same limit."""
        if limit_when_sent == self.limit:
            self.limit = max(1, self.limit // 2)
            self._is_opening = False
            self._steps.clear()
            self._hold = HOLD
            self._start_round()

    def _start_round(self) -> None:
        self._answers, self._seconds, self._tokens = 0, 0.0, 0

    def _end_round(self, latency: float) -> None:
        if self._steps:
            old_limit, old_latency = self._steps[-1]
            growth = self.limit / old_limit - 1
            if latency > old_latency * (1 + (1 - GAIN) * growth):
                self._steps.pop()
                self.limit = old_limit
                self._is_opening = False
                self._hold = self._next_hold
                self._next_hold = min(LONGEST_HOLD, 2 * self._next_hold)
                return
            self._next_hold = HOLD
        if self._is_opening and self.limit == self.maximum:
            self._is_opening = False  # a whole round decides about the last step
            return
        if not self._is_opening:
            self._steps.clear()
        if self._hold > 0:
            self._hold -= 1
        elif self.limit < self.maximum:
            self._steps.append((self.limit, latency))
            larger = self.limit * FACTOR if self._is_opening else self.limit * (1 + STEP)
            self.limit = min(self.maximum, max(self.limit + 1, int(larger)))


class Bucket:
    """A token bucket: an amount per minute, of which it holds a tenth, so that bursts are short.

    Callers take an estimate and correct it when the true amount is known, so the level may be
    negative.
    """

    def __init__(self, per_minute: float | None, now: float) -> None:
        self._rate = math.inf if per_minute is None else per_minute / 60
        self._capacity = max(1.0, self._rate * 6)
        self._level = self._capacity
        self._updated = now

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` may be taken.

        For more than the bucket holds, these are the seconds until it is full.
        """
        if math.isinf(self._rate):
            return 0.0
        self._level = min(self._capacity, self._level + (now - self._updated) * self._rate)
        self._updated = now
        return max(0.0, (min(amount, self._capacity) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Take an amount, or give it back if it is negative."""
        self._level -= amount


def backoff(attempt: int, first: float, longest: float, draw: float) -> float:
    """Return the seconds to wait after attempt `attempt` (the first is 1).

    `draw`, between 0 and 1, spreads the wait between half of it and all of it.

    >>> [backoff(attempt, 0.5, 10, 1.0) for attempt in range(1, 7)]
    [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    """
    return min(longest, first * 2.0 ** (attempt - 1)) * (0.5 + draw / 2)
