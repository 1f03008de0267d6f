"""How often the answers of an engine are sent on, when it is faster than they can be taken."""

from __future__ import annotations

SHARE = 0.5
"""Of the engine's time that may go into sending."""
NEW = 0.05
"""Weight of the latest cost in the average."""
LONGEST = 0.05
"""Seconds between two responses of an answer: a reader sees no step in that."""


class Pace:
    """Spaces the responses of each answer, and what comes between them goes with the next.

    A response costs its sender a few switches between processes, however many tokens are in it. All
    answers are sent by one thread, the engine's own, so `n` of them may each be sent once in `n`
    times the cost of a response, divided by the share of time. That is less than the step of an
    engine that keeps up, whose tokens then go out one by one:

    >>> pace = Pace()
    >>> pace.running = 8
    >>> round(pace.next_send(start=10.0, end=10.001), 6)  # 8 · 1 ms / 0.5 later
    10.016
    """

    running = 0
    """Answers that are being sent."""
    _cost: float | None = None

    def next_send(self, start: float, end: float) -> float:
        """Before which time an answer is not sent again that was sent from `start` to `end`."""
        cost = end - start
        self._cost = cost if self._cost is None else self._cost + NEW * (cost - self._cost)
        return start + min(self.running * self._cost / SHARE, LONGEST)
