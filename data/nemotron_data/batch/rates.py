"""Limits on requests and tokens per minute, which all requests of a run have in common."""

from __future__ import annotations

import time
from collections.abc import Callable

from nemotron_data.batch.pace import Bucket

EXPECTED_TOKENS = 256
"""Tokens that a row is expected to need before any row has been answered."""


class Rates:
    """Decides when the next request may be sent. `clock` returns seconds."""

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        now = clock()
        self._requests = Bucket(requests_per_minute, now)
        self._tokens = Bucket(tokens_per_minute, now)
        self._answers = self._used_tokens = 0

    @property
    def expected_tokens(self) -> float:
        """Tokens of prompt and answer that the next row is expected to need."""
        return self._used_tokens / self._answers if self._answers else EXPECTED_TOKENS

    def wait(self) -> float:
        """Return the seconds until one more request may be sent."""
        now = self._clock()
        return max(self._requests.wait(1, now), self._tokens.wait(self.expected_tokens, now))

    def take(self) -> float:
        """Take what one request needs, and return the tokens that it is expected to use."""
        expected = self.expected_tokens
        self._requests.take(1)
        self._tokens.take(expected)
        return expected

    def settle(self, expected: float, used: int | None) -> None:
        """Correct the tokens of a request by those that it used; `None` if it has no answer."""
        self._tokens.take((used or 0) - expected)
        if used is not None:
            self._answers += 1
            self._used_tokens += used
