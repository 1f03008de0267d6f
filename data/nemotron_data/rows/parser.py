"""The forms in which a record of the input is a request, or the reason why it is none.

A record becomes a row in one of these forms:

- a line of OpenAI's batches, ``{"custom_id": …, "method": "POST", "url": …, "body": {…}}``;
- the body alone, with `messages` or with `prompt`, and optionally a `custom_id`;
- ShareGPT's ``{"conversations": [{"from": "human", "value": …}, …]}``;
- a text alone, which is the message of a user;
- any columns, of which a template or one column makes the message of a user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from nemotron_core.openai.keys import TAKEN, keys_of
from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from nemotron_data.rows.row import CHAT, COMPLETION, PROMPTS, BadRow, Row
from nemotron_data.rows.template import parse_template, render

LONGEST_ID = 512
"""Length in characters."""
PARAMETERS = frozenset(
    {
        key.name
        for schema in (ChatRequest, CompletionRequest)
        for key in keys_of(schema)
        if key.support == TAKEN
    }
    # Columns of a table are seldom meant by other keys that have no effect on an answer.
    | {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"}
    | {"prompt_cache_key", "modalities"}
    # What other OpenAI-compatible servers take.
    | {"min_p", "ignore_eos", "stop_token_ids", "bad_words", "length_penalty", "best_of", "suffix"}
    | {"guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"}
    | {"chat_template_kwargs", "reasoning_effort", "verbosity", "audio", "prediction"}
    | {"tools", "tool_choice", "functions", "function_call", "extra_body", "logit_bias", "priority"}
)
"""Keys of a body without `body` around it that are sent; any other one is metadata."""
_PLAIN_KEYS = (PARAMETERS - {"prompt", "stream"}) | {"custom_id"}
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant"}
SHAREGPT_ROLES |= {"assistant": "assistant", "chatgpt": "assistant", "model": "assistant"}
TEXTS = frozenset({"prompt", "model", "user", "stop"})
"""Parameters that are texts, also where a table has only texts."""
FORMS = (
    "write an OpenAI batch line, or an object with messages or with prompt; "
    "for other columns use --prompt or --prompt-column"
)


class UnknownForm(ValueError):
    """A record in none of the forms of a request."""


class RowParser:
    """Makes rows of records, all in the same way.

    `prompt` is a Jinja template of the user's message over a row's columns, and `prompt_column` the
    column that holds the message; at most one of them is given. `system` is a template of the
    system message, for the rows whose user's message comes from one of these two. `id_column` is
    the column with the custom_id. Raises `ValueError` if a template is none.
    """

    def __init__(
        self,
        prompt: str | None = None,
        prompt_column: str | None = None,
        system: str | None = None,
        id_column: str | None = None,
    ) -> None:
        self._prompt = None if prompt is None else parse_template(prompt)
        self._system = None if system is None else parse_template(system)
        self._prompt_column = prompt_column
        self._id_column = id_column
        self._is_plain = prompt is None and prompt_column is None and id_column is None
        self.metadata_columns: dict[str, None] = {}
        """Names of the columns that went to the metadata so far, in their order."""

    def parse(self, number: int, record: bytes | str | dict[str, Any] | BadRow) -> Row | BadRow:
        """Return the row of a record, or why there is none.

        >>> RowParser().parse(7, b'{"prompt": "One, two,", "max_tokens": 5}')
        Row(7, 'row-7bd18a35d38be1496abe97175834ff4e', '/v1/completions', {'prompt': 'One, two,', 'max_tokens': 5})
        """  # noqa: E501
        if isinstance(record, BadRow):
            return record
        custom_id = None
        try:
            content = decode(record) if isinstance(record, bytes) else record
            if self._is_plain and (row := _plain_row(number, content)) is not None:
                return row
            if isinstance(content, str):
                content = {"text": content}
            if not isinstance(content, dict):
                raise UnknownForm("the record is neither an object nor a text")
            if isinstance(record, dict):
                content = {key: value for key, value in content.items() if value is not None}
            custom_id = self._custom_id(content)
            endpoint, body, metadata = self._request(content)
            if isinstance(record, dict):
                body = _typed(body)
            _check(endpoint, body)
            for name in metadata:
                self.metadata_columns[name] = None
            return Row(number, custom_id, endpoint, body, metadata or None)
        except RecursionError:
            return BadRow(number, custom_id, "the JSON is nested too deep", "write a flat request")
        except UnknownForm as error:
            return BadRow(number, custom_id, str(error), FORMS)
        except ValueError as error:
            reason = " ".join(str(error).split())
            return BadRow(number, custom_id, reason, "correct the row")

    def _custom_id(self, content: Mapping[str, Any]) -> str | None:
        name = self._id_column or "custom_id"
        if name not in content and self._id_column is None:
            if "conversations" not in content:
                return None
            name = "id"  # of ShareGPT's rows
        value = content.get(name)
        if value is None and self._id_column is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not 0 < len(value) <= LONGEST_ID:
            raise ValueError(f"{name} must be a string of 1 to {LONGEST_ID} characters")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise ValueError(f"{name} holds half of a surrogate pair, {half}") from error
        return value

    def _request(self, content: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return the endpoint, the body and the metadata of a record."""
        id_column = self._id_column or "custom_id"
        if self._prompt is not None or self._prompt_column is not None:
            metadata = {key: value for key, value in content.items() if key != id_column}
            return CHAT, {"messages": self._messages(content)}, metadata
        if "body" in content:
            return _batch_line(content, id_column)
        if "messages" in content or "prompt" in content:
            body, metadata = {}, {}
            for key, value in content.items():
                if key in PARAMETERS:
                    body[key] = value
                elif key != id_column:
                    metadata[key] = value
            return (COMPLETION if "prompt" in body else CHAT), body, metadata
        if "conversations" in content:
            return _sharegpt(content, id_column)
        if content.keys() == {"text"}:
            return CHAT, {"messages": [{"role": "user", "content": content["text"]}]}, {}
        names = ", ".join(sorted(map(str, content)))[:200]
        raise UnknownForm(
            f"there is no messages, only {names}" if names else "there is no messages"
        )

    def _messages(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        if self._prompt is not None:
            text = render(self._prompt, content)
        elif self._prompt_column in content:
            text = content[self._prompt_column]
        else:
            raise ValueError(f"there is no column {self._prompt_column!r}")
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the prompt is empty or no text")
        user = {"role": "user", "content": text}
        if self._system is None:
            return [user]
        return [{"role": "system", "content": render(self._system, content)}, user]


def _plain_row(number: int, content: Any) -> Row | None:
    """Return the row of a chat that needs no further look, as most are: a file may have millions.

    Returns `None` for anything else.
    """
    if (
        type(content) is not dict
        or type(custom_id := content.get("custom_id")) is not str
        or not 0 < len(custom_id) <= LONGEST_ID
        or not _PLAIN_KEYS.issuperset(content)
        or type(content.get("messages")) is not list
        or not content["messages"]
    ):
        return None
    body = content.copy()
    del body["custom_id"]
    return Row(number, custom_id, CHAT, body)


def decode(line: bytes) -> Any:
    """Return the content of a line of JSON. Raises `ValueError` with the column of an error."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass  # the standard library reads more, and its messages have a column
    try:
        content = json.loads(line.decode().rstrip(), parse_constant=_reject_constant)
        json.dumps(content, allow_nan=False)
        return content
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise ValueError(f"not UTF-8: {byte}") from error
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")
        raise ValueError(f"not JSON: {reason} at column {error.colno}") from error


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _batch_line(
    content: dict[str, Any], id_column: str
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    if content.get("method", "POST") != "POST":
        raise ValueError(f"method {content['method']!r} is not POST")
    endpoint, body = content.get("url", CHAT), content["body"]
    if not isinstance(endpoint, str) or endpoint not in PROMPTS:
        raise ValueError(f"url {endpoint!r} is neither {CHAT} nor {COMPLETION}")
    if not isinstance(body, dict):
        raise ValueError("body is not a JSON object")
    outside = content.keys() - {"method", "url", "body", id_column}
    return endpoint, body, {key: content[key] for key in content if key in outside}


def _sharegpt(
    content: dict[str, Any], id_column: str
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return a request for the answer to a conversation.

    If the conversation ends with an answer, the request ends before it, and the answer goes to the
    metadata as `reference`.
    """
    turns = content["conversations"]
    metadata = {
        key: content[key] for key in content if key not in ("conversations", "id", id_column)
    }
    messages = []
    for turn in turns if isinstance(turns, list) else [turns]:
        columns = turn if isinstance(turn, dict) else {}
        role, text = SHAREGPT_ROLES.get(str(columns.get("from"))), columns.get("value")
        if role is None or not isinstance(text, str):
            raise ValueError("a turn of conversations has no from (human, gpt, system) and value")
        messages.append({"role": role, "content": text})
    if messages and messages[-1]["role"] == "assistant":
        metadata["reference"] = messages.pop()["content"]
    return CHAT, {"messages": messages}, metadata


def _typed(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a table's row with the types that JSON has.

    CSV has only texts, and every message of a table has the keys of all.
    """
    typed = {}
    for key, value in body.items():
        if value == "":
            continue
        typed[key] = _parsed(value) if key not in TEXTS else value
    if isinstance(messages := typed.get("messages"), list):
        typed["messages"] = [
            {name: part for name, part in message.items() if part is not None}
            if isinstance(message, dict)
            else message
            for message in messages
        ]
    return typed


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ValueError):
            return decode(value.encode())
    return value


def _check(endpoint: str, body: Mapping[str, Any]) -> None:
    key = PROMPTS[endpoint]
    other = "prompt" if key == "messages" else "messages"
    prompt = body.get(key)
    if prompt is None:
        raise ValueError(f"there is no {key}")
    if other in body:
        raise ValueError(f"{other} does not belong to {endpoint}")
    if not prompt or not isinstance(prompt, list if key == "messages" else (str, list)):
        raise ValueError(f"{key} is empty or of the wrong type")
    if body.get("stream"):
        raise ValueError("stream is set, but a batch writes whole answers")
