"""The protocol of a transport, with the answers and failures that every transport has in common."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from nemotron_core.errors import ErrorKind
from nemotron_data.rows.row import Row

API_KEYS = ("NEMOTRON_API_KEY", "OPENAI_API_KEY")
"""Environment variables with the server's API key; the first one that is set is used. The key is
never written anywhere."""
HASHES = ("engine", "checkpoint", "template")
"""Hashes by which a server identifies what its answers are made with."""


def api_key(variables: Sequence[str] = API_KEYS) -> str | None:
    """Return the key in the first of the environment variables that is set, or `None`."""
    return next(filter(None, map(os.environ.get, variables)), None)


class Message(msgspec.Struct):
    """The keys of an answer's message that a batch reads."""

    content: Any = None
    tool_calls: Any = None
    function_call: Any = None


class Choice(msgspec.Struct):
    """The keys of a choice that a batch reads; a chat has `message`, a completion `text`."""

    finish_reason: Any = None
    message: Message | None = None
    text: Any = None


class Content(msgspec.Struct):
    """The keys of an answer's body that a batch reads."""

    choices: list[Choice]
    usage: Any = None
    id: Any = None
    system_fingerprint: Any = None


_decode = msgspec.json.Decoder(Content).decode


class Answer:
    """A response in the form of OpenAI's API.

    Raises `Failure` if `body`, the JSON as it came, has not this form.
    """

    __slots__ = ("body", "choices", "fingerprint", "ignored_keys", "request_id", "status", "usage")

    def __init__(
        self,
        status: int,
        request_id: str | None,
        body: bytes,
        ignored_keys: Sequence[str] = (),
    ) -> None:
        try:
            content = _decode(body)
            if not body.isascii():
                body.decode()
        except UnicodeDecodeError as error:
            raise malformed(status, str(error)) from error
        except msgspec.MsgspecError as error:
            content = _decode_surrogates(status, body, error)
        self.status = status
        """HTTP status."""
        self.request_id = request_id or str(content.id or "")
        self.body = body
        self.choices = content.choices
        self.usage = content.usage
        fingerprint = content.system_fingerprint
        self.fingerprint = fingerprint if isinstance(fingerprint, str) else None
        """Name of the engine, if the server reports it."""
        self.ignored_keys = ignored_keys
        """Keys of the request that the server does not know, if it reports them."""

    def token_count(self, name: str) -> int:
        """Return a count of the body's `usage`, or 0 if the server does not report it."""
        count = self.usage.get(name) if isinstance(self.usage, dict) else None
        return count if isinstance(count, int) else 0


def _decode_surrogates(status: int, body: bytes, error: Exception) -> Content:
    """Read a body with halves of surrogate pairs, which JSON can write and UTF-8 cannot."""
    try:
        content = json.loads(body.decode(), parse_constant=_reject_constant)
        return msgspec.convert(content, Content)
    except (ValueError, RecursionError):
        raise malformed(status, str(error)) from error


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def identity(entry: Mapping[str, Any]) -> dict[str, str | None]:
    """Return a server's description of itself from an entry of its list of models.

    A value is `None` if the server does not report it. Raises `LookupError` or `TypeError` if the
    entry is none.
    """
    values = {"model": entry["id"]} | {name: entry.get(name) for name in HASHES}
    return {name: None if value is None else str(value) for name, value in values.items()}


def malformed(status: int, text: str) -> Failure:
    """Return the failure of a server that answers with something else."""
    return Failure(ErrorKind.FAILED, f"the answer is not OpenAI's: {text}", status=status)


class Failure(Exception):
    """A request that got no answer.

    Transports raise these kinds: `REFUSED` (the row is wrong), `OVERLOADED` (send it again later,
    with fewer requests at once), `UNREACHABLE` (wait for the server), and `FAILED` or `TIMED_OUT`
    (try it again, but only a few times).
    """

    def __init__(
        self,
        kind: ErrorKind,
        text: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        body: bytes | None = None,
    ) -> None:
        super().__init__(" ".join(text.split()))
        self.kind = kind
        self.status = status
        """HTTP status of the response, or the one that the gateway would send; `None` if no
        response came over HTTP."""
        self.retry_after = retry_after
        """Seconds that the server asks clients to wait."""
        self.body = body
        """Body of the response, if the transport keeps it."""


class Transport(Protocol):
    """A connection to a server.

    Every method raises `Failure`, or `NemotronError` if no row could ever be answered.
    """

    async def describe(self) -> dict[str, str | None]:
        """Return what the server says about itself. Raises `Failure` if it is unreachable.

        The keys are `model` (a name) and `engine`, `checkpoint` and `template` (hashes). A value is
        `None`, or its key is missing, if the server does not report it.
        """
        ...

    async def models(self) -> list[str]:
        """Return the names of the server's models; the list is empty if it names none."""
        ...

    async def send(self, row: Row, body: Mapping[str, Any]) -> Answer:
        """Return the answer to `row`, whose request body with the run's defaults is `body`."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
