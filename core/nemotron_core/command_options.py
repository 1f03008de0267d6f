"""Decorator that turns a dataclass of options into the parameters of a verb."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

Options = TypeVar("Options")
Verb = Callable[..., None]


def takes(options_type: type[Options]) -> Callable[[Callable[[Options], None]], Verb]:
    """Return a decorator that makes a verb of a function with one dataclass of options.

    Each field becomes a parameter of the command line, with its `typer.Annotated` declaration and
    its default. Typer reads a function's signature, so the verb gets a signature of these fields.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Greeting:
    ...     name: str
    ...     count: int = 1
    >>> @takes(Greeting)
    ... def greet(greeting: Greeting) -> None:
    ...     print("Hello", greeting.name, greeting.count)
    >>> inspect.signature(greet)
    <Signature (*, name: str, count: int = 1)>
    >>> greet(name="Ada")
    Hello Ada 1
    """
    hints = get_type_hints(options_type, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty
            if field.default is dataclasses.MISSING
            else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(options_type)  # type: ignore[arg-type]
    ]

    def decorate(function: Callable[[Options], None]) -> Verb:
        @functools.wraps(function)
        def verb(**values: Any) -> None:
            function(options_type(**values))

        verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        verb.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del verb.__wrapped__
        return verb

    return decorate
