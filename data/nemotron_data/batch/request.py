"""The body of the request for a row: its own keys, the run's defaults, and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemotron_data.options import MODEL, Value
from nemotron_data.rows.row import Row


def row_seed(seed: int, custom_id: str, attempt: int = 1) -> int:
    """Return the seed of a row that sets none.

    It is the first 6 bytes, big-endian, of the SHA-256 of "seed:custom_id", and from the second
    attempt on of "seed:custom_id:attempt". So it is below 2**48 and exact in any JSON parser.

    >>> row_seed(0, "question-1")
    280154119006244
    """
    text = f"{seed}:{custom_id}" if attempt == 1 else f"{seed}:{custom_id}:{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


@dataclass(frozen=True)
class Requests:
    """Makes the body of each row's request.

    `defaults` are keys for rows that do not set them; a `model` of `None` means the server's.
    Without a `seed`, rows get none.
    """

    defaults: Mapping[str, Value]
    seed: int | None

    def body(self, row: Row, attempt: int = 1) -> dict[str, Any]:
        """Return the body. `attempt` counts the answers that were asked for, from 1."""
        body: dict[str, Any] = {**self.defaults, **row.body}
        if body.get("model", "") is None:
            del body["model"]
        if "max_completion_tokens" in row.body and "max_tokens" not in row.body:
            body.pop("max_tokens", None)
        own_seed = row.body.get("seed")
        if own_seed is None and self.seed is not None:
            body["seed"] = row_seed(self.seed, row.custom_id, attempt)
        elif isinstance(own_seed, int) and attempt > 1:
            body["seed"] = own_seed + attempt - 1
        return body

    def at_server(self, description: Mapping[str, Value]) -> Requests:
        """Return the requests to a server that describes itself so: with the name of its model."""
        if self.defaults.get("model", "") is not None:
            return self
        model = description.get("model") or MODEL
        return replace(self, defaults={**self.defaults, "model": model})

    def can_differ(self, row: Row) -> bool:
        """Return whether another attempt may give another answer: not for greedy decoding."""
        temperature: object = {**self.defaults, **row.body}.get("temperature", 1)
        return temperature != 0
