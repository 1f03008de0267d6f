"""Jinja templates over the columns of a row, in a sandbox."""

from __future__ import annotations

from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

# The texts of a row are values and never templates. The sandbox also keeps a template from reaching
# anything but the row.
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


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
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"the template fails: {error}") from error
