"""The API keys that clients need."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from http import HTTPStatus

from nemotron_core.openai.errors import HttpError


class Keys:
    """API keys, held as hashes and compared in a time that does not depend on the client's key."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @property
    def are_required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._digests)

    def check(self, authorization: str) -> None:
        """Raise `HttpError` 401 if keys are required and the header has none of them."""
        if not self._digests:
            return
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip().encode(errors="surrogateescape"))
        # Not a generator: all digests are compared, whichever matches.
        matches = [hmac.compare_digest(digest, known_digest) for known_digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise HttpError(
                HTTPStatus.UNAUTHORIZED,
                "a valid API key is needed: send the header 'Authorization: Bearer KEY'",
                error_type="authentication_error",
                code="invalid_api_key",
            )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
