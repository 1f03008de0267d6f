"""The record of one request for the access log and the metrics."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from nemotron_gateway.keys import ApiKey
from nemotron_gateway.metrics import Metrics

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
REQUEST_ID_HEADER = b"x-request-id"
UNMATCHED = "unmatched"
"""Route of all requests that match no endpoint: clients must not create labels of metrics."""


@dataclass
class RequestRecord:
    """Times and counts of one request. It holds no text unless `log_prompts` is set."""

    metrics: Metrics
    request_id: str
    route: str = UNMATCHED
    status: int = 0
    began: float = field(default_factory=time.monotonic)
    first_token_seconds: float | None = None
    """Seconds from the request's headers to the first piece of a streamed answer."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    body: object = None
    """The request's JSON, if the setting `log_prompts` puts it into the log."""
    ignored_keys: list[str] = field(default_factory=list)
    """The first keys of the request that the gateway does not know, shortened."""
    key: ApiKey | None = None
    """The client's API key, if one is required."""
    background_slots: int | None = None
    """Number of sequences that the engine computes at once, for a request in the background, which
    leaves room for others; `None` for any other request."""
    _last_piece: float = 0.0

    @classmethod
    def from_headers(
        cls, headers: Iterable[tuple[bytes, bytes]], metrics: Metrics
    ) -> RequestRecord:
        """Return a record with the client's `X-Request-ID`, or a random id if it is not valid."""
        request_id = dict(headers).get(REQUEST_ID_HEADER, b"").decode("latin-1")
        return cls(
            metrics, request_id if REQUEST_ID.fullmatch(request_id) else secrets.token_hex(16)
        )

    @property
    def seconds(self) -> float:
        """Seconds since the request's headers came."""
        return time.monotonic() - self.began

    def count_piece(self) -> None:
        """Measure the time to this piece of a streamed answer, from the piece before it."""
        now = time.monotonic()
        if self.first_token_seconds is None:
            self.first_token_seconds = now - self.began
            self.metrics.first_token.observe(self.first_token_seconds)
        else:
            self.metrics.between_tokens.observe(now - self._last_piece)
        self._last_piece = now

    def count_tokens(self, prompt: int, generated: int) -> None:
        """Add the token counts of an answer that has ended."""
        self.prompt_tokens += prompt
        self.generated_tokens += generated
        self.metrics.prompt_tokens.inc(prompt)
        self.metrics.generated_tokens.inc(generated)

    def finish(self) -> None:
        """Count the request, which has been answered, by its route and status."""
        # In Python 3.10 the text of an `HTTPStatus` is its name, so it becomes a plain number.
        self.metrics.requests.labels(self.route, str(int(self.status))).inc()
        self.metrics.seconds.labels(self.route).observe(self.seconds)
