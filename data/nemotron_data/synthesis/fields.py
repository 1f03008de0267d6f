"""What the settings of recipes are made of: templates, expressions, rows, sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from nemotron_data.rows.template import parse_expression, parse_template


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _template(text: str) -> str:
    parse_template(text)
    return text


def _expression(text: str) -> str:
    parse_expression(text)
    return text


TemplateText = Annotated[str, AfterValidator(_template)]
"""A Jinja template over the columns of a row."""
ExpressionText = Annotated[str, AfterValidator(_expression)]
"""A Jinja expression over the columns of a row, without the braces."""
Column = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Crossed(Strict):
    """Each row of the first source with each row of the others."""

    cross: list[str] = Field(min_length=2)


class Zipped(Strict):
    """The first row of each source, then the second of each, and so on."""

    zip: list[str] = Field(min_length=2)


def _rows(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        raise ValueError(
            "give a step or file, a list of them, or {cross: […]} or {zip: […]} of two or more"
        ) from None


RowsOf = Annotated[str | list[str] | Crossed | Zipped, WrapValidator(_rows)]


@dataclass(frozen=True)
class Inputs:
    """The sources of a step's rows, files or steps, and how they are combined."""

    names: list[str]
    how: Literal["chain", "cross", "zip"]

    @classmethod
    def of(cls, rows: RowsOf) -> Inputs:
        if isinstance(rows, Crossed):
            return cls(rows.cross, "cross")
        if isinstance(rows, Zipped):
            return cls(rows.zip, "zip")
        return cls([rows] if isinstance(rows, str) else rows, "chain")


class Sampling(Strict):
    """How answers are sampled."""

    max_tokens: int | None = Field(default=1024, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    stop: list[str] = Field(default_factory=list)
    extra: dict[str, Any] = Field(default_factory=dict)
    """Other keys of a request, for example `top_k` or `guided_choice`."""

    def body(self) -> dict[str, Any]:
        """Return the keys of a request's body."""
        body: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p}
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        if self.stop:
            body["stop"] = self.stop
        return body | self.extra
