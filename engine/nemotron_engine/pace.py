"""Intervals at which an engine sends its responses, where each response costs time."""

from __future__ import annotations

from nemotron_core.wire import Lane

SENDING_FRACTIONS: dict[Lane, float] = {"cpu": 0.025, "pytorch": 0.5}
"""Fraction of the time that sending responses may take. The CPU engine computes on every core; a
response takes time from the next tokens: here, in Triton, in postprocessing and in the client."""
INITIAL_COST = 1e-4
"""Assumed cost of a response in seconds, until it is measured."""
LATEST_WEIGHT = 0.05
"""Weight of the latest cost in the average."""
OUTLIER_FACTOR = 4
"""Limit of a cost, as a multiple of the average: a higher cost means that the machine stalled."""
MIN_SECONDS: dict[Lane, float] = {"cpu": 0.025, "pytorch": 0.0}
"""Least time from one burst to the next. On the CPU, each burst makes the engine's processes take
each other's cores, which neither sees in its own costs; 40 texts a second look smooth."""
MAX_SECONDS = 0.5
"""Most time from one burst to the next."""


class Pace:
    """Schedules bursts, in which all answers send; tokens in between wait for the next burst.

    A response costs its sender a few switches between processes, however many tokens are in it, and
    less if another one was sent just before. One thread sends all of them, so a burst takes the
    cost of a response times the number of running answers. The time from one burst to the next is
    that product divided by the lane's fraction. On a GPU it is less than a step of an engine that
    keeps up, whose tokens are then sent one by one:

    >>> pace = Pace("pytorch")
    >>> pace.burst(10.0, running=8)  # the next begins 8 · 0.1 ms / 0.5 later
    1
    >>> pace.burst(10.0015, running=8), pace.burst(10.0017, running=8)
    (1, 2)
    """

    def __init__(self, lane: Lane) -> None:
        self._fraction, self._min_seconds = SENDING_FRACTIONS[lane], MIN_SECONDS[lane]
        self._cost = INITIAL_COST
        self._burst = 0
        self.next = 0.0
        """Start of the next burst, in seconds of the clock that `burst` is called with."""

    def burst(self, now: float, running: int) -> int:
        """Return the number of the burst at `now`, in which each running answer sends once."""
        if now >= self.next:
            self._burst += 1
            interval = running * self._cost / self._fraction
            self.next = now + min(max(interval, self._min_seconds), MAX_SECONDS)
        return self._burst

    def record_cost(self, seconds: float) -> None:
        """Record the cost in seconds of a response that was sent."""
        self._cost += LATEST_WEIGHT * (min(seconds, OUTLIER_FACTOR * self._cost) - self._cost)
