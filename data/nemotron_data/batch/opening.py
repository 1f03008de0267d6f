"""The beginning of a run: few requests until one succeeds, and an end if all are refused alike."""

from __future__ import annotations

import math

from nemotron_core.errors import NemotronError
from nemotron_data.transport.protocol import Failure

PROBES = 20
"""Number of requests at once before the first success, and of equal refusals that end a run."""


class Opening:
    """Counts refusals until the first success.

    A run that is wrong as a whole (a model that does not exist, a key of the body that the server
    does not know) so costs `PROBES` requests, and not one for each row.
    """

    def __init__(self) -> None:
        self._is_open = False
        self._refusal: tuple[int | None, str] | None = None
        self._refusals = 0

    @property
    def limit(self) -> float:
        """Number of requests that may run at once."""
        return math.inf if self._is_open else PROBES - self._refusals

    def record_success(self) -> None:
        self._is_open = True

    def record_refusal(self, failure: Failure) -> NemotronError | None:
        """Count a refusal. Returns the error that ends the run, if the refusals were all alike."""
        if self._is_open:
            return None
        refusal = failure.status, str(failure)
        self._refusals = self._refusals + 1 if refusal == self._refusal else 1
        self._refusal = refusal
        if self._refusals < PROBES:
            return None
        return NemotronError(
            f"the first {PROBES} rows were all refused: {failure}",
            remedy="correct the rows or the options; nothing else was sent",
        )
