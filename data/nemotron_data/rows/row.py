"""A row of the input: a request with an id, and a key that identifies what is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
PROMPTS = {CHAT: "messages", COMPLETION: "prompt"}
"""Key of a request body that holds the prompt, for each of the two endpoints."""


class Row:
    """One request. `number` is the number of its record, from 1."""

    __slots__ = ("body", "custom_id", "endpoint", "file", "has_own_id", "key", "metadata", "number")

    def __init__(
        self,
        number: int,
        custom_id: str | None,
        endpoint: str,
        body: dict[str, Any],
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.number = number
        self.endpoint = endpoint
        self.body = body
        self.metadata = metadata
        """Columns that are not a part of the request, for the output."""
        self.file: str | None = None
        """Name of the input's file, if the input has several."""
        self.has_own_id = custom_id is not None
        self.custom_id: str
        self.key: bytes
        """16 bytes that identify what is asked: custom_id, endpoint and body."""
        request = endpoint.encode() + canonical(body)
        if custom_id is None:
            self.key = _hash(request)
            self.custom_id = f"row-{self.key.hex()}"
        else:
            self.custom_id = custom_id
            self.key = _hash(custom_id.encode() + b"\n" + request)

    def rename(self, count: int) -> None:
        """Give the row its name as number `count` of equal rows without a custom_id, from 2."""
        self.custom_id += f"-{count}"
        self.key = repeated_key(self.key, count)

    def __repr__(self) -> str:
        return f"Row({self.number}, {self.custom_id!r}, {self.endpoint!r}, {self.body!r})"


@dataclass(frozen=True)
class BadRow:
    """A record that cannot be sent, with the reason and a remedy."""

    number: int
    custom_id: str | None
    reason: str
    remedy: str
    file: str | None = None
    """Name of the input's file, if the input has several."""


def repeated_key(key: bytes, count: int) -> bytes:
    """Return the key of number `count` of equal rows without a custom_id, from `key` of the first.

    >>> repeated_key(bytes(16), 2).hex()
    '94b84ac69c41c736a050398cd7098a43'
    """
    return _hash(key + count.to_bytes(8, "big"))


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


_encode_sorted = msgspec.json.Encoder(order="sorted").encode


def canonical(content: object) -> bytes:
    """Return content as JSON that is the same for any order of keys.

    Raises `ValueError` if it is no JSON.
    """
    try:
        return _encode_sorted(content)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    except TypeError as error:  # a value of a table, such as a date
        raise ValueError(str(error)) from error
