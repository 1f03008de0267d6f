"""A stand-in for Nemotron-4-340B-Reward that computes its scores from the bytes of the text."""

from __future__ import annotations

from typing import Any

from tests.standins.chat_server import ChatServer, Reply, said


def scores_of(answer: str) -> dict[str, float]:
    """Return scores that are the same for the same text and differ between most texts."""
    total = sum(position * byte for position, byte in enumerate(answer.encode(), 1))
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return {name: (total % (7 + 2 * i)) / 2 for i, name in enumerate(names)}


def answer(body: dict[str, Any], _inside: int) -> Reply:
    *_prompt, last = body["messages"]
    assert last["role"] == "assistant"
    return said(",".join(f"{name}:{value}" for name, value in scores_of(last["content"]).items()))


def reward_server() -> ChatServer:
    return ChatServer(answer)
