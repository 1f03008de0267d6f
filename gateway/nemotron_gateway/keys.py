"""Who may ask."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from http import HTTPStatus

from nemotron_core.openai.errors import HttpError


class Keys:
    """Compares in the same time whatever was sent, and holds no key in the clear."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @property
    def wanted(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str) -> None:
        """HttpError 401 unless the header carries one of the keys, or there are none."""
        if not self._digests:
            return
        scheme, _, key = authorization.partition(" ")
        sent = _digest(key.strip().encode(errors="surrogateescape"))
        found = [hmac.compare_digest(sent, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(found):
            raise HttpError(
                HTTPStatus.UNAUTHORIZED,
                "a valid API key is needed: send the header 'Authorization: Bearer KEY'",
                kind="authentication_error",
                code="invalid_api_key",
            )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
