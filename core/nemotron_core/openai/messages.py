"""The messages of a conversation in OpenAI's form, and the same as the chat template takes them."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from nemotron_core.openai.keys import NO_TOOLS, ListOf, OpenModel, neutral_only, no_effect, taken

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""The chat template's role for each of OpenAI's."""
TOOL_ROLES = ("tool", "function")
TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
"""The key with the text of each type of part."""


class Part(OpenModel):
    """A part of a message's content."""

    type: str = taken("`text`, `input_text`, `output_text` or `refusal`", "text")
    text: str = taken("", "")
    refusal: str = taken("", "")
    annotations: Any = no_effect()

    @field_validator("type")
    @classmethod
    def _is_text(cls, kind: str) -> str:
        if kind not in TEXT_PARTS:
            raise ValueError(f"this model reads text only, no {kind!r}")
        return kind

    def content(self) -> str:
        """Return the part's text."""
        return str(getattr(self, TEXT_PARTS[self.type]))


class Message(OpenModel):
    """A message. Its content may be missing, as OpenAI's own library sends it back."""

    role: str = taken("`system`, `developer`, `user` or `assistant`", ...)
    content: str | ListOf[Part] = taken("a text, or a list of text parts", "")
    name: Any = no_effect("the chat template has no place for it")
    refusal: Any = no_effect("")
    annotations: Any = no_effect("")
    reasoning_content: Any = no_effect("")
    reasoning: Any = no_effect("")
    audio: Any = neutral_only("this model has no audio", {})
    tool_calls: Any = neutral_only(NO_TOOLS, [])
    function_call: Any = neutral_only(NO_TOOLS)
    tool_call_id: Any = neutral_only(NO_TOOLS, "")

    @field_validator("role")
    @classmethod
    def _is_known(cls, role: str) -> str:
        if role in TOOL_ROLES:
            raise ValueError(NO_TOOLS)
        if role not in ROLES:
            raise ValueError(f"there is no role {role!r}, only {', '.join(ROLES)}")
        return role

    def as_dict(self) -> dict[str, str]:
        """Return the message as the chat template takes it: role, and content as one text."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.content() for part in content)
        return {"role": ROLES[self.role], "content": content}
