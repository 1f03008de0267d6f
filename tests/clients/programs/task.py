"""What each program here gets on standard input, and how it prints what its client made of it.

Runs in the environment of the client, so it needs nothing but Python.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """A question, and a conversation whose last turn is the user's."""

    url: str
    """Base URL of OpenAI's API, which ends with `/v1`."""
    model: str
    question: str
    turns: list[dict[str, str]]
    prompt: str
    """The question as a raw prompt, which its answer follows."""


def read_task() -> Task:
    return Task(**json.load(sys.stdin))


def report(**results: Any) -> None:
    """Print the results by their names, as the last line of the output."""
    print(json.dumps(results))
