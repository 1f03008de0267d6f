"""The access log: one line of JSON on standard error for each request."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone

from starlette.types import Scope

from nemotron_gateway.request_record import RequestRecord


def write(scope: Scope, record: RequestRecord) -> None:
    """Write the line for a request that has been answered."""
    client = scope.get("client")
    line: dict[str, object] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"],
        "status": record.status,
        "seconds": round(record.seconds, 4),
    }
    if record.first_token_seconds is not None:
        line["first_token_seconds"] = round(record.first_token_seconds, 4)
    if record.prompt_tokens:
        line |= {
            "prompt_tokens": record.prompt_tokens,
            "generated_tokens": record.generated_tokens,
        }
    if record.ignored_keys:
        line["ignored_keys"] = record.ignored_keys
    if record.key is not None and record.key.name:
        line["key"] = record.key.name
    if record.body is not None:
        line["body"] = record.body
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()
