"""OpenAI's Responses API for text, without a store: its request and its answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import field_validator

from nemotron_core.generation import Piece
from nemotron_core.openai.generation_request import MAX_INT
from nemotron_core.openai.guides import JsonSchema
from nemotron_core.openai.keys import NO_TOOLS, ListOf, OpenModel, neutral_only, no_effect, taken
from nemotron_core.openai.messages import Message
from nemotron_core.openai.schema import ChatRequest
from nemotron_core.openai.usage import Usage

NOT_STORED = "nothing is stored: send the whole conversation with each request"
NO_REASONING = "this model does not reason before it answers"


class Item(Message):
    """An item of the input, of which only messages are text."""

    type: str = taken("`message`", "message")
    id: Any = no_effect()
    status: Any = no_effect()

    @field_validator("type")
    @classmethod
    def _is_message(cls, kind: str) -> str:
        if kind != "message":
            raise ValueError(f"only messages are read, no {kind!r}")
        return kind


class Format(JsonSchema):
    """The form of the text: the same as `response_format` of chat completions, laid flat."""

    type: Literal["text", "json_object", "json_schema"] = "text"

    def response_format(self) -> dict[str, Any]:
        """Return the same for chat completions."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"schema": self.schema_}}


class TextOptions(OpenModel):
    format: Format = taken("", Format.model_validate({}))
    verbosity: Any = neutral_only("say it in a message", "medium")


class ResponsesRequest(OpenModel):
    """Body of `POST /v1/responses`."""

    model: str | None = taken("its name, an alias, or an adapter's name; the model without it")
    input: str | ListOf[Item] = taken("a user's message, or messages", ..., min_length=1)
    instructions: str | None = taken("a system message before all others")
    max_output_tokens: int | None = taken("", ge=1, le=MAX_INT)
    temperature: float | None = taken("0 is greedy; 1 without it", ge=0, le=2)
    top_p: float | None = taken("", ge=0, le=1)
    text: TextOptions | None = taken("`text.format` if the engine has `guides`")
    stream: bool | None = taken()

    stream_options: Any = no_effect()
    metadata: Any = no_effect()
    store: Any = no_effect("nothing is stored")
    user: Any = no_effect()
    safety_identifier: Any = no_effect()
    prompt_cache_key: Any = no_effect()
    prompt_cache_retention: Any = no_effect()
    service_tier: Any = no_effect("there is one")
    parallel_tool_calls: Any = no_effect()
    max_tool_calls: Any = no_effect()

    previous_response_id: Any = neutral_only(NOT_STORED)
    conversation: Any = neutral_only(NOT_STORED)
    background: Any = neutral_only(NOT_STORED, False)
    prompt: Any = neutral_only(NOT_STORED)
    tools: Any = neutral_only(NO_TOOLS, [])
    tool_choice: Any = neutral_only(NO_TOOLS, "none", "auto")
    reasoning: Any = neutral_only(NO_REASONING, {}, {"effort": "none"}, {"effort": None})
    include: Any = neutral_only("there is nothing to include", [])
    truncation: Any = neutral_only("prompts are never cut: shorten it", "disabled")
    top_logprobs: Any = neutral_only("ask chat completions for log-probabilities", 0)

    def chat_request(self) -> ChatRequest:
        """Return the same as a request for a chat completion."""
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += [item.as_dict() for item in self.input]
        return ChatRequest.model_validate(
            {
                "model": self.model,
                "messages": messages,
                "max_tokens": self.max_output_tokens,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "response_format": self.text and self.text.format.response_format(),
            }
        )


class ResponseAnswer:
    """Builder of a response, whole or as the events of a stream, each with its name.

    >>> answer = ResponseAnswer("nemotron", ResponsesRequest(input="Hello"))
    >>> answer.add(Piece("Hi", finish_reason="stop", num_input_tokens=3, num_output_tokens=2))
    >>> whole = answer.whole()
    >>> whole["status"], whole["output"][0]["content"][0]["text"], whole["usage"]["total_tokens"]
    ('completed', 'Hi', 5)
    """

    def __init__(self, model: str, request: ResponsesRequest) -> None:
        self.usage = Usage()
        self._id = f"resp_{uuid.uuid4().hex}"
        self._item_id = f"msg_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._request = request
        self._texts: list[str] = []
        self._finish_reason = ""
        self._number = 0

    def add(self, piece: Piece) -> None:
        """Add the next piece of the answer."""
        self.usage.add(0, piece)
        self._texts.append(piece.text)
        self._finish_reason = piece.finish_reason

    def whole(self) -> dict[str, Any]:
        """Return the response as it is now."""
        is_cut = self._finish_reason == "length"
        status = "incomplete" if is_cut else "completed" if self._finish_reason else "in_progress"
        usage = self.usage.as_dict()
        request = self._request
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self._model,
            "output": [self._item(status)] if self._finish_reason else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": {"type": request.text.format.type if request.text else "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            }
            if self._finish_reason
            else None,
            "metadata": request.metadata or {},
        }

    def opening(self) -> Iterator[dict[str, Any]]:
        """Yield the events that open a stream."""
        yield self._event("response.created", response=self.whole())
        yield self._event("response.in_progress", response=self.whole())
        item = self._item("in_progress") | {"content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._part_event("response.content_part.added", part=_part(""))

    def delta(self, text: str) -> dict[str, Any]:
        """Return the event for the next text."""
        return self._part_event("response.output_text.delta", delta=text, logprobs=[])

    def closing(self) -> Iterator[dict[str, Any]]:
        """Yield the events that close a stream."""
        text = "".join(self._texts)
        yield self._part_event("response.output_text.done", text=text, logprobs=[])
        yield self._part_event("response.content_part.done", part=_part(text))
        whole = self.whole()
        item = self._item(whole["status"])
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{whole['status']}", response=whole)

    def failure(self, code: str | None, message: str) -> dict[str, Any]:
        """Return the event for an error in the middle of a stream."""
        return self._event("error", code=code, message=message, param=None)

    def _item(self, status: str) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self._item_id,
            "status": status,
            "role": "assistant",
            "content": [_part("".join(self._texts))],
        }

    def _part_event(self, name: str, **fields: Any) -> dict[str, Any]:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event(name, **place, **fields)

    def _event(self, name: str, **fields: Any) -> dict[str, Any]:
        number, self._number = self._number, self._number + 1
        return {"type": name, "sequence_number": number, **fields}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
