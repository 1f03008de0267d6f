"""Print the table of keys of docs/gateway.md from the schemas: python scripts/gateway_keys.py."""

from __future__ import annotations

import json
from collections import defaultdict

from pydantic import BaseModel

from nemotron_core.openai.generation_request import StreamOptions
from nemotron_core.openai.guides import StructuredOutputs
from nemotron_core.openai.keys import NEUTRAL_ONLY, NO_EFFECT, REFUSED, TAKEN, Key, keys_of
from nemotron_core.openai.messages import Message
from nemotron_core.openai.responses import ResponsesRequest, TextOptions
from nemotron_core.openai.schema import ChatRequest, CompletionRequest

REQUESTS = {"chat": ChatRequest, "completions": CompletionRequest, "responses": ResponsesRequest}
PARTS: dict[str, tuple[type[BaseModel], str]] = {
    "messages[].": (Message, "chat"),
    "stream_options.": (StreamOptions, "chat, completions"),
    "structured_outputs.": (StructuredOutputs, "chat, completions"),
    "text.": (TextOptions, "responses"),
}
"""Objects inside requests, by the prefix of their keys."""
ORDER = (TAKEN, NEUTRAL_ONLY, REFUSED, NO_EFFECT)


def table() -> str:
    """Return Markdown: each key with what it is, where it belongs, and why."""
    places: defaultdict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for endpoint, schema in REQUESTS.items():
        for key in keys_of(schema):
            places[_row(key, "")].append(endpoint)
    for prefix, (schema, endpoints) in PARTS.items():
        for key in keys_of(schema):
            places[_row(key, prefix)].append(endpoints)
    lines = ["| key | is | of | |", "|---|---|---|---|"]
    rows = sorted(
        places.items(), key=lambda row: (ORDER.index(row[0][1]), "." in row[0][0], row[0])
    )
    for (name, support, neutral, note), endpoints in rows:
        what = f"{support}: {neutral}" if neutral else support
        lines.append(f"| `{name}` | {what} | {', '.join(endpoints)} | {note} |")
    return "\n".join(lines)


def _row(key: Key, prefix: str) -> tuple[str, str, str, str]:
    neutral = ", ".join(f"`{json.dumps(value)}`" for value in key.neutral)
    return prefix + key.name, key.support, neutral, key.note


if __name__ == "__main__":
    print(table())
