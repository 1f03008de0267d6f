"""One line of JSON for each request, on standard error; nothing of its text unless asked for."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime, timezone

from nemotron_gateway.call import Scope
from nemotron_gateway.record import Record


def write(scope: Scope, record: Record) -> None:
    """The line of a request that is over."""
    client = scope.get("client")
    line: dict[str, object] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"],
        "status": record.status,
        "seconds": round(time.monotonic() - record.began, 4),
    }
    if record.first_token_seconds is not None:
        line["first_token_seconds"] = round(record.first_token_seconds, 4)
    if record.prompt_tokens:
        line |= {
            "prompt_tokens": record.prompt_tokens,
            "generated_tokens": record.generated_tokens,
        }
    if record.body is not None:
        line["body"] = record.body
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()
