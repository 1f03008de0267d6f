"""What each key of a request is here: taken, without effect, or refused unless it asks for nothing.

The schemas declare it with each key, and the checks, the API's description and the table in
docs/gateway.md come from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from nemotron_core.openai.errors import bad_request

SUPPORT = "support"
TAKEN, NO_EFFECT, NEUTRAL_ONLY, REFUSED = "taken", "no effect", "neutral only", "refused"
NO_TOOLS = "this model has no tool format: describe the tools in a message, and parse the answer"
Item = TypeVar("Item")


class _FailFast(FailFast):
    """Pydantic's class, with the hash that a member of a union of types needs."""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


ListOf = Annotated[list[Item], _FailFast()]
"""A list that is refused at its first wrong item: a body may have millions of them."""


def taken(note: str = "", default: Any = None, **bounds: Any) -> Any:
    """Return the field of a key that does what it says."""
    return Field(default, description=note, json_schema_extra={SUPPORT: TAKEN}, **bounds)


def no_effect(note: str = "") -> Any:
    """Return the field of a key that may have any value, because none changes the answer."""
    return Field(None, description=note, json_schema_extra={SUPPORT: NO_EFFECT})


def neutral_only(reason: str, *values: Any) -> Any:
    """Return the field of a key whose effect this model cannot have.

    `values` are those that ask for nothing; without any, the key is refused.
    """
    extra: dict[str, Any] = {SUPPORT: NEUTRAL_ONLY if values else REFUSED, "neutral": list(values)}
    return Field(None, description=reason, json_schema_extra=extra)


class OpenModel(BaseModel):
    """An object of a request: `null` leaves a key out, and unknown keys are kept in view."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if value is not None}

    def unknown_keys(self, prefix: str = "") -> list[str]:
        """Return the keys that the schema does not have, with those of objects inside it."""
        names = [prefix + name for name in self.model_extra or ()]
        for place, item in self._objects(prefix):
            names += item.unknown_keys(place)
        return names

    def check(self) -> None:
        """Raise `HttpError` if the keys, each one valid, ask for what cannot be done."""
        self.check_neutral_keys()

    def check_neutral_keys(self, prefix: str = "") -> None:
        """Raise `HttpError` if a key asks for what this model cannot do."""
        for key in keys_of(type(self)):
            value = getattr(self, key.field)
            is_limited = key.support in (NEUTRAL_ONLY, REFUSED) and value is not None
            if is_limited and not any(_same(value, neutral) for neutral in key.neutral):
                raise bad_request(f"{prefix}{key.name}: {key.note}", f"{prefix}{key.name}")
        for place, item in self._objects(prefix):
            item.check_neutral_keys(place)

    def _objects(self, prefix: str) -> Iterator[tuple[str, OpenModel]]:
        """Yield the objects inside this one, each with the prefix of its keys."""
        for key in keys_of(type(self)):
            value = getattr(self, key.field)
            if isinstance(value, OpenModel):
                yield f"{prefix}{key.name}.", value
            elif isinstance(value, list):
                for number, item in enumerate(value):
                    if isinstance(item, OpenModel):
                        yield f"{prefix}{key.name}.{number}.", item


def _same(value: Any, neutral: Any) -> bool:
    """Return whether two values are equal as JSON: 1 is 1.0, but 0 is not false."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


class Key:
    """A key of a schema, as `taken`, `no_effect` or `neutral_only` declares it."""

    def __init__(self, field: str, info: Any) -> None:
        extra = info.json_schema_extra or {SUPPORT: TAKEN}
        self.field = field
        self.name = info.alias or field
        self.support = str(extra[SUPPORT])
        self.neutral: list[Any] = extra.get("neutral", [])
        self.note = info.description or ""


@cache
def keys_of(schema: type[BaseModel]) -> tuple[Key, ...]:
    """Return the keys of a schema."""
    return tuple(Key(field, info) for field, info in schema.model_fields.items())
