"""Jinja templates and expressions over the columns of a row, in a sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

# The texts of a row are values and never templates. The sandbox also keeps a template from reaching
# anything but the row.
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
# A constant that overflows becomes the unknown name `inf` in the code that Jinja makes.
_ERRORS = (TemplateError, TypeError, NameError, ValueError, ArithmeticError, LookupError)
Expression = Callable[[dict[str, Any]], Any]


def add_filter(name: str, function: Callable[..., str]) -> None:
    """Let all templates use a function as a filter."""
    _ENVIRONMENT.filters[name] = function


def parse_template(text: str) -> Template:
    """Return a template. Raises `ValueError` if the text is none."""
    try:
        return _ENVIRONMENT.from_string(text)
    except TemplateError as error:
        raise ValueError(f"not a template: {error}") from error


def render(template: Template, columns: dict[str, Any]) -> str:
    """Return the text for a row. Raises `ValueError`, for example if a column is missing."""
    try:
        return template.render(columns)
    except _ERRORS as error:
        raise ValueError(f"the template fails: {error}") from error


def parse_expression(text: str) -> Expression:
    """Return a function of a row's columns. Raises `ValueError` if the text is no expression.

    The function raises `ValueError` if it fails, for example if a column is missing.

    >>> parse_expression("reward >= 3 and answer|length < 10")({"reward": 4, "answer": "tea"})
    True
    """
    try:
        compiled = _ENVIRONMENT.compile_expression(text, undefined_to_none=False)
    except TemplateError as error:
        raise ValueError(f"not an expression: {error}") from error

    def evaluate(columns: dict[str, Any]) -> Any:
        try:
            value = compiled(columns)
            if isinstance(value, Undefined):
                str(value)  # raises with the name of what is missing
        except _ERRORS as error:
            raise ValueError(f"the expression fails: {error}") from error
        return value

    return evaluate
