"""What is remembered of a request, for the log and the metrics."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
REQUEST_ID_HEADER = b"x-request-id"


@dataclass
class Record:
    """Nothing of its text, unless the settings want that."""

    request_id: str
    route: str = ""
    status: int = 0
    began: float = field(default_factory=time.monotonic)
    first_token_seconds: float | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    body: object = None
    """The request, where the settings want it in the log."""

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]]) -> Record:
        """With the id that the client chose, if it is a harmless one."""
        sent = dict(headers).get(REQUEST_ID_HEADER, b"").decode("latin-1")
        return cls(sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex)
