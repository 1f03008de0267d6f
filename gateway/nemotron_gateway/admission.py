"""How much runs at the same time: limits by tokens, for everybody and for each key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nemotron_core.errors import ErrorKind
from nemotron_core.openai.errors import HttpError
from nemotron_gateway.keys import ApiKey

CHARACTERS_PER_TOKEN = 4
"""For the estimate of a prompt's tokens. The engine's own check is exact."""


@dataclass
class _Load:
    prompts: int = 0
    tokens: int = 0


class Admission:
    """Counts the tokens that running requests may still need. More than `tokens` are refused."""

    def __init__(self, tokens: int) -> None:
        self._limit = tokens
        self._all = _Load()
        self._of_key: defaultdict[bytes, _Load] = defaultdict(_Load)

    @contextmanager
    def admit(self, key: ApiKey | None, prompts: int, tokens: int) -> Iterator[None]:
        """Count a request inside the context. Raises `HttpError` 429 if it is too much now."""
        # What runs alone is within other limits; it must be possible at all.
        if self._all.tokens and self._all.tokens + tokens > self._limit:
            raise _overloaded(f"running requests need {self._all.tokens} tokens already")
        loads = [self._all]
        if key is not None:
            load = self._of_key[key.digest]
            loads.append(load)
            if key.requests is not None and load.prompts + prompts > key.requests:
                raise _overloaded(f"this key may have {key.requests} prompts at a time")
            if key.tokens is not None and load.tokens + tokens > key.tokens:
                raise _overloaded(f"this key may have {key.tokens} tokens at a time")
        for load in loads:
            load.prompts += prompts
            load.tokens += tokens
        try:
            yield
        finally:
            for load in loads:
                load.prompts -= prompts
                load.tokens -= tokens
            if key is not None and not loads[-1].prompts:
                self._of_key.pop(key.digest, None)


def estimate_tokens(prompt: str | list[int]) -> int:
    """Return about how many tokens a prompt has."""
    return 1 + len(prompt) // CHARACTERS_PER_TOKEN if isinstance(prompt, str) else len(prompt)


def _overloaded(message: str) -> HttpError:
    return HttpError.of_kind(ErrorKind.OVERLOADED, message)
