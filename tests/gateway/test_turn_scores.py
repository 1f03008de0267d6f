"""The scores that Triton sends, read from its response."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nemotron_core.openai.errors import HttpError
from nemotron_core.reward import SCORED
from nemotron_gateway.settings import GatewaySettings
from nemotron_gateway.turn_scores import read_turns
from tests.gateway.asgi import ScriptedEngine, ask

WIDTH = len(SCORED)


def response(scores: Any, reward: Any, tokens: Any) -> bytes:
    return json.dumps({"scores": scores, "reward": reward, "num_input_tokens": tokens}).encode()


def test_one_turn_and_several() -> None:
    (turn,) = read_turns(response([1.0] * WIDTH, 2.5, 7))
    assert (turn.reward, turn.num_tokens, set(turn.scores.values())) == (2.5, 7, {1.0})
    first, second = read_turns(response([1.0] * WIDTH + [2.0] * WIDTH, [3.0, 4.0], [7, 8]))
    assert (first.reward, second.reward, second.num_tokens) == (3.0, 4.0, 8)


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        response([1.0] * (WIDTH + 1), 2.5, 7),
        response([1.0] * WIDTH, [2.5, 3.0], [7, 8]),
        response([1.0] * 2 * WIDTH, [2.5, 3.0], [7]),
    ],
)
def test_scores_that_do_not_fit(content: bytes) -> None:
    with pytest.raises(HttpError, match="Triton sent"):
        read_turns(content)


def test_as_many_turns_as_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn is a sequence of its own, and counts as one in every limit."""
    ScriptedEngine(kind="reward").install(monkeypatch)
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    most = GatewaySettings().limits.answers
    refused = ask({"messages": turn * (most + 1), "turns": "all"}, "/v1/chat/completions")
    assert refused.status == 400
    assert refused.message == f"at most {most} turns are scored in one request"
