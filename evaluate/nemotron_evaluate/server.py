"""What an evaluation asks a server beside its answers: who it is, and the tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_data.transport.protocol import API_KEYS, api_key, identity

SECONDS = 30.0
"""Longest time for one request."""


class Server:
    """An OpenAI-compatible server at `url`, which may end with `/v1`; a context manager.

    The first of the environment's `variables` that is set has its key. Every method raises
    `NemotronError` if the server does not answer or refuses.
    """

    def __init__(self, url: str, variables: Sequence[str] = API_KEYS) -> None:
        self.url = base_url(url)
        self._variables = variables
        key = api_key(variables)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx.Client(base_url=self.url, headers=headers, timeout=SECONDS)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise NemotronError(f"not the URL of a server: {error}", where=url) from error

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def identity(self) -> dict[str, str | None]:
        """Return the model's name and the hashes that the server reports; `None` where it does not.

        The gateway reports all of them, other servers the name only.
        """
        content = self._ask("GET", "/v1/models")
        try:
            return identity(content["data"][0])
        except (LookupError, TypeError) as error:
            raise NemotronError("/v1/models lists no model", where=self.url) from error

    def context(self) -> int | None:
        """Return the context's length in tokens, or `None` if the server does not report it."""
        content = self._ask("GET", "/v1/models")
        try:
            length = content["data"][0].get("max_model_len")
            return None if length is None else int(length)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise NemotronError("/v1/models has no max_model_len", where=self.url) from error

    def tokenize(self, **body: Any) -> list[int]:
        """Return the token ids of `prompt=` or `messages=`, in the form of vLLM's `/tokenize`."""
        content = self._ask("POST", "/tokenize", body)
        try:
            return [int(token_id) for token_id in content["tokens"]]
        except (LookupError, TypeError, ValueError) as error:
            raise NemotronError("/tokenize returns no tokens", where=self.url) from error

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the first choice of the answer to a completion."""
        return self._first_choice("/v1/completions", body)

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the first choice of the answer to a chat."""
        return self._first_choice("/v1/chat/completions", body)

    def _first_choice(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        content = self._ask("POST", path, body)
        try:
            return dict(content["choices"][0])
        except (LookupError, TypeError, ValueError) as error:
            raise NemotronError("the answer has no choices", where=self.url) from error

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        try:
            response = self._client.request(method, path, json=body)
            content = response.json() if response.content else {}
        except httpx.HTTPError as error:
            raise NemotronError(
                f"no answer: {error or type(error).__name__}",
                where=self.url,
                remedy="start the server, or name its URL, such as http://127.0.0.1:1424",
                kind=ErrorKind.UNREACHABLE,
            ) from error
        except ValueError as error:
            raise NemotronError(f"{path} is not answered in JSON", where=self.url) from error
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise NemotronError(
                f"the server refuses the key ({response.status_code})",
                where=self.url,
                remedy=f"set {' or '.join(self._variables)}",
            )
        if response.status_code != httpx.codes.OK:
            message = _message(content) or f"HTTP {response.status_code}"
            raise NemotronError(f"{path}: {message}", where=self.url)
        return content


def base_url(url: str) -> str:
    """Return a server's URL without `/v1`.

    >>> base_url("http://127.0.0.1:1424/v1/")
    'http://127.0.0.1:1424'
    """
    return url.rstrip("/").removesuffix("/v1")


def check_same_server(url: str, before: Mapping[str, str | None], during: str, remedy: str) -> None:
    """Raise `NemotronError` if the server became another one during a run than it was before."""
    with Server(url) as server:
        now = server.identity()
    if now != before:
        raise NemotronError(
            f"the server became another one during {during}: {now}", where=url, remedy=remedy
        )


def _message(content: Any) -> str | None:
    try:
        return str(content["error"]["message"])
    except (LookupError, TypeError):
        return None
