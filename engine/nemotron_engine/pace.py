"""How often an engine hands on what it has, where handing it on costs more than it may."""

from __future__ import annotations

from nemotron_core.wire import Lane

SHARES: dict[Lane, float] = {"cpu": 0.025, "pytorch": 0.5}
"""Of the time that may go into handing on. The CPU engine computes on every core; what a response
takes there it takes from the next tokens: here, in Triton, in postprocessing and in the client."""
FIRST_COST = 1e-4
"""Seconds of a response, until more is known."""
NEW = 0.05
"""Weight of the latest cost in the average."""
OUTLIER = 4
"""Times the average: what is more counts as this much, for it is the machine that stalled."""
SHORTEST: dict[Lane, float] = {"cpu": 0.025, "pytorch": 0.0}
"""Seconds from one burst to the next. On the CPU the engine's processes take each other's cores at
each, which neither sees in its own costs; 40 texts a second are as smooth as any eye wants."""
LONGEST = 0.5
"""The same, at most."""


class Pace:
    """Hands on all answers together, in bursts, and what comes between them goes with the next.

    A response costs its sender a few switches between processes, however many tokens are in it, and
    less if another was sent just before. One thread sends all of them, so a burst takes as many
    times the cost of a response as answers are running, and the time from one to the next is that
    divided by the share. On a GPU it is less than the step of an engine that keeps up, whose tokens
    then go out one by one:

    >>> pace = Pace("pytorch")
    >>> pace.burst(10.0, running=8)  # the next begins 8 · 0.1 ms / 0.5 later
    1
    >>> pace.burst(10.0015, running=8), pace.burst(10.0017, running=8)
    (1, 2)
    """

    def __init__(self, lane: Lane) -> None:
        self._share, self._shortest = SHARES[lane], SHORTEST[lane]
        self._cost = FIRST_COST
        self._burst = 0
        self.next = 0.0
        """When the next burst begins, seconds of the clock that `burst` is told."""

    def burst(self, now: float, running: int) -> int:
        """The number of the burst that runs, in which each of the running answers goes once."""
        if now >= self.next:
            self._burst += 1
            wanted = running * self._cost / self._share
            self.next = now + min(max(wanted, self._shortest), LONGEST)
        return self._burst

    def sent(self, seconds: float) -> None:
        """A response was, and that took so long."""
        self._cost += NEW * (min(seconds, OUTLIER * self._cost) - self._cost)
