"""What a server's metrics say about its engine's draft."""

from __future__ import annotations

import http.client
import re
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from nemotron_core.errors import NemotronError
from nemotron_core.metrics import DRAFT_ACCEPTED_METRIC, DRAFT_PROPOSED_METRIC, DRAFT_STEPS_METRIC

SECONDS = 10.0
SAMPLE = re.compile(r"^(\w+)(?:\{.*\})? (\S+)$", re.MULTILINE)
"""Matches a number on a page of metrics."""
NAMES = {
    DRAFT_STEPS_METRIC: "steps",
    DRAFT_PROPOSED_METRIC: "proposed",
    DRAFT_ACCEPTED_METRIC: "accepted",
}


class DraftCounts(BaseModel):
    """Numbers of steps with a draft, of tokens that it could propose, and of those that were right.

    All are 0 on an engine without a draft.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = 0
    proposed: int = 0
    accepted: int = 0

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens that a step gave an answer."""
        return 1 + self.accepted / self.steps

    def since(self, before: DraftCounts) -> DraftCounts | None:
        """Return what has come since then, or `None` if there were no steps with a draft."""
        counts = {name: getattr(self, name) - getattr(before, name) for name in NAMES.values()}
        return DraftCounts(**counts) if counts["steps"] > 0 else None

    def __str__(self) -> str:
        right = self.accepted / self.proposed if self.proposed else 0.0
        return f"{self.tokens_per_step:.2f} tokens per step, {right:.0%} of the proposed right"


def read_counts(url: str) -> DraftCounts:
    """Return the counts on a page of metrics, `http://HOST:PORT/metrics` of Triton.

    Raises `NemotronError` if there is no such page.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise NemotronError(
            f"{url!r} is no page of metrics",
            where="--metrics",
            remedy="use http://HOST:8002/metrics, Triton's",
        )
    connection = http.client.HTTPConnection(parts.netloc, timeout=SECONDS)
    try:
        connection.request("GET", parts.path or "/metrics")
        response = connection.getresponse()
        text = response.read().decode()
        if response.status != http.HTTPStatus.OK:
            raise ValueError(f"HTTP {response.status}")
        counts = {name: int(float(value)) for name, value in SAMPLE.findall(text) if name in NAMES}
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NemotronError(
            f"cannot be read: {error}",
            where=url,
            remedy="give Triton's page of metrics, http://HOST:8002/metrics, to --metrics",
        ) from error
    finally:
        connection.close()
    return DraftCounts(**{NAMES[name]: count for name, count in counts.items()})
