"""The API keys that clients need, from the environment or from a file that may change."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_core.openai.errors import HttpError

LOG = logging.getLogger("nemotron_gateway")
KEYS_VARIABLE = "NEMOTRON_API_KEYS"
KEYS_FILE_VARIABLE = "NEMOTRON_API_KEYS_FILE"
KINDS = ("user", "admin")
EVERYBODY = "everybody"
"""Owner of what is stored while no keys are required."""
LOOK_SECONDS = 1.0
"""Seconds between two looks whether the file has changed."""
FORM = "one key a line: [user|admin] KEY [name=NAME] [requests=NUMBER] [tokens=NUMBER]"


@dataclass(frozen=True)
class ApiKey:
    """A key, as a hash, and what its holder may do."""

    digest: bytes
    is_admin: bool = False
    name: str = ""
    """Name in the log."""
    requests: int | None = None
    """Limit of the holder's prompts that run at the same time."""
    tokens: int | None = None
    """Limit of the tokens that these may still need."""

    @property
    def owner(self) -> str:
        """Name under which what belongs to the key is stored, from which nobody gets the key."""
        return self.digest.hex()[:32]


def owner_of(key: ApiKey | None) -> str:
    """Return the name under which what belongs to a key is stored. All without keys share one."""
    return EVERYBODY if key is None else key.owner


class Keys:
    """API keys, held as hashes and compared in a time that does not depend on the client's key.

    With a `path` they are read again when the file changes. While the file is wrong, the keys that
    were read last count, and the log says why. Raises `NemotronError` if it is wrong at first.
    """

    def __init__(self, lines: Sequence[str] = (), path: Path | None = None) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._next_look = 0.0
        self._keys = _parse(lines, where=KEYS_VARIABLE)
        if path is not None:
            self._version = _version(path)
            self._keys = _read(path)

    @classmethod
    def configured(cls, path: Path | None, environment: Mapping[str, str] = os.environ) -> Keys:
        """Return the keys of a file, else of the environment; without any, nobody needs one."""
        if path is None and KEYS_FILE_VARIABLE in environment:
            path = Path(environment[KEYS_FILE_VARIABLE])
        if path is not None:
            return cls(path=path)
        return cls(environment.get(KEYS_VARIABLE, "").splitlines())

    @property
    def are_required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._keys)

    def check(self, authorization: str, *, needs_admin: bool = False) -> ApiKey | None:
        """Return the client's key, or `None` if none is required.

        What needs an admin key is off without one. Raises `HttpError` 401 if the header has no
        valid key, and 403 if the key is no admin key where one is needed.
        """
        self._look()
        if not self._keys and not needs_admin:
            return None
        key = self._find(authorization)
        if key is None:
            what = "an admin key" if needs_admin else "a valid API key"
            raise HttpError(
                HTTPStatus.UNAUTHORIZED,
                f"{what} is needed: send the header 'Authorization: Bearer KEY'",
                error_type="authentication_error",
                code="invalid_api_key",
            )
        if needs_admin and not key.is_admin:
            raise HttpError(
                HTTPStatus.FORBIDDEN,
                "this needs an admin key, and this is a user's",
                error_type="permission_error",
                code="admin_key_needed",
            )
        return key

    def of_owner(self, owner: str) -> ApiKey | None:
        """Return the key to which an owner's things belong, or `None` if no keys are required.

        Raises `NemotronError` if the key is no longer valid.
        """
        self._look()
        if owner == EVERYBODY and not self._keys:
            return None
        for key in self._keys:
            if key.owner == owner:
                return key
        raise NemotronError("the API key is no longer valid", where="the batch's owner")

    def _find(self, authorization: str) -> ApiKey | None:
        scheme, _, text = authorization.partition(" ")
        digest = _digest(text.strip().encode(errors="surrogateescape"))
        # Not a generator: all digests are compared, whichever matches.
        matches = [key for key in self._keys if hmac.compare_digest(digest, key.digest)]
        return matches[0] if matches and scheme.lower() == "bearer" else None

    def _look(self) -> None:
        """Read the file again if it has changed."""
        now = time.monotonic()
        if self._path is None or now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        try:
            version = _version(self._path)
            if version != self._version:
                self._version = version
                self._keys = _read(self._path)
                LOG.warning("%s has changed: %d keys", self._path, len(self._keys))
        except NemotronError as error:
            LOG.warning("the keys that were read last count: %s", error)


def _version(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise NemotronError("cannot read the API keys", where=path) from error
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> tuple[ApiKey, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NemotronError("cannot read the API keys", where=path) from error
    if not (keys := _parse(lines, where=str(path))):
        # An empty file is more likely a mistake than a wish to serve everybody.
        raise NemotronError("no API keys in the file", where=path, remedy=FORM)
    return keys


def _parse(lines: Sequence[str], where: str) -> tuple[ApiKey, ...]:
    """Return the keys of lines of the form `FORM`. The error never contains a key."""
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        kind = words.pop(0) if len(words) > 1 and words[0] in KINDS else "user"
        text, *options = words
        fields: dict[str, str | int] = {}
        for option in options:
            name, _, value = option.partition("=")
            is_number = name in ("requests", "tokens") and value.isdecimal() and int(value) > 0
            if not is_number and (name != "name" or not value):
                place = f"{where}, line {number}"
                raise NemotronError("a key's line is wrong", where=place, remedy=FORM)
            fields[name] = int(value) if is_number else value
        keys.append(ApiKey(_digest(text.encode()), kind == "admin", **fields))  # type: ignore[arg-type]
    return tuple(keys)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
