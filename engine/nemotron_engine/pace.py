"""How often the answers of an engine are sent on, when it is faster than they can be taken."""

from __future__ import annotations

SHARE = 0.5
"""Of the engine's time that may go into sending."""
FIRST_COST = 1e-4
"""Seconds of a response, until more is known."""
NEW = 0.05
"""Weight of the latest cost in the average."""
OUTLIER = 4
"""Times the average: what is more counts as this much, for it is the machine that stalled."""
LONGEST = 0.5
"""Seconds between two responses of an answer."""


class Pace:
    """Spaces the responses of each answer, and what comes between them goes with the next.

    A response costs its sender a few switches between processes, however many tokens are in it. All
    answers are sent by one thread, the engine's own, so `n` of them may each be sent once in `n`
    times the cost of a response, divided by the share of time. That is less than the step of an
    engine that keeps up, whose tokens then go out one by one:

    >>> pace = Pace()
    >>> pace.running = 8
    >>> round(pace.next_send(start=10.0, end=10.0001), 6)  # 8 · 0.1 ms / 0.5 later
    10.0016
    """

    running = 0
    """Answers that are being sent."""
    _cost = FIRST_COST

    def next_send(self, start: float, end: float) -> float:
        """Before which time an answer is not sent again that was sent from `start` to `end`."""
        self._cost += NEW * (min(end - start, OUTLIER * self._cost) - self._cost)
        return start + min(self.running * self._cost / SHARE, LONGEST)
