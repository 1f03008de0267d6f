"""The keys that ask for structured output, and the guide of the contract that each one means."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, model_validator

from nemotron_core.openai.errors import bad_request
from nemotron_core.openai.keys import ListOf, OpenModel, neutral_only, no_effect, taken

Guide = tuple[str, str]
"""Values of `guided_decoding_guide_type` and `guided_decoding_guide`."""


class JsonSchema(OpenModel):
    name: str = no_effect()
    description: str | None = no_effect()
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = no_effect("a schema is always obeyed")


class ResponseFormat(OpenModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema")
        return self

    def guide(self) -> Guide | None:
        """Return the guide, or `None` for plain text."""
        if self.type == "text":
            return None
        if self.json_schema is None or self.json_schema.schema_ is None:
            return "json", ""
        return "json_schema", json.dumps(self.json_schema.schema_)


class StructuredOutputs(OpenModel):
    """vLLM's object, of whose keys one is given."""

    json_: dict[str, Any] | str | None = taken("a JSON schema", alias="json")
    regex: str | None = taken()
    choice: ListOf[str] | None = taken("the answer is one of these", min_length=1)
    grammar: str | None = taken("in EBNF")
    json_object: bool | None = taken("any JSON object")
    structural_tag: dict[str, Any] | str | None = taken()
    disable_fallback: Any = no_effect()
    disable_any_whitespace: Any = neutral_only("white space cannot be switched off", False)
    disable_additional_properties: Any = neutral_only("say it in the schema", False)
    whitespace_pattern: Any = neutral_only("white space is as the engine's library has it")

    def guides(self) -> list[Guide]:
        """Return the guide of each key that is given."""
        guides = []
        if self.json_ is not None:
            guides.append(("json_schema", _text(self.json_)))
        if self.regex is not None:
            guides.append(("regex", self.regex))
        if self.choice is not None:
            guides.append(("ebnf_grammar", choice_grammar(self.choice)))
        if self.grammar is not None:
            guides.append(("ebnf_grammar", self.grammar))
        if self.json_object:
            guides.append(("json", ""))
        if self.structural_tag is not None:
            guides.append(("structural_tag", _text(self.structural_tag)))
        return guides


def choice_grammar(choices: list[str]) -> str:
    r"""Return the grammar of one of several texts.

    >>> choice_grammar(["red", 'a "b"'])
    'root ::= "red" | "a \\"b\\""'
    """
    return "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def only_guide(guides: list[Guide]) -> tuple[str | None, str | None]:
    """Return the only guide, if there is one. Raises `HttpError` if there are several."""
    if len(guides) > 1:
        raise bad_request("one kind of structured output at a time: send one of the keys for it")
    if not guides:
        return None, None
    guide_type, guide = guides[0]
    return guide_type, guide or None


def _text(value: dict[str, Any] | str) -> str:
    return value if isinstance(value, str) else json.dumps(value)
