"""A reward model in the form of OpenAI's chat completions, as NVIDIA's NIM of it has it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemotron_core.openai.keys import ListOf, OpenModel, neutral_only, no_effect, taken
from nemotron_core.openai.messages import Message
from nemotron_core.reward import scores_text

NO_TEXT = "a reward model generates no text"
FINISH_REASON = "length"
"""What the NIM says."""


class RewardRequest(OpenModel):
    """Body of `POST /v1/chat/completions` to a reward model."""

    model: str | None = taken("its name or one of its aliases; the only model without it")
    messages: ListOf[Message] = taken("the last one is the assistant's", ..., min_length=1)
    turns: Literal["all", "last"] | None = taken(
        "ours: a choice for each of the assistant's turns, or for the last one (the default)"
    )
    timeout: float | None = taken("seconds for the answer, its time in the queue included", gt=0)

    user: Any = no_effect()
    metadata: Any = no_effect()
    store: Any = no_effect("nothing is stored")
    request_id: Any = no_effect("send the header X-Request-ID")
    logprobs: Any = no_effect("the scores are always there")
    top_logprobs: Any = no_effect("scores have no alternatives")
    service_tier: Any = no_effect("there is one")
    safety_identifier: Any = no_effect()

    stream: Any = neutral_only("scores come at once", False)
    stream_options: Any = neutral_only("scores come at once")
    n: Any = neutral_only("a conversation has one score", 1)
    max_tokens: Any = neutral_only(NO_TEXT)
    max_completion_tokens: Any = neutral_only(NO_TEXT)
    temperature: Any = neutral_only(NO_TEXT)
    top_p: Any = neutral_only(NO_TEXT)
    top_k: Any = neutral_only(NO_TEXT)
    min_p: Any = neutral_only(NO_TEXT)
    seed: Any = neutral_only(NO_TEXT)
    stop: Any = neutral_only(NO_TEXT, [])
    stop_token_ids: Any = neutral_only(NO_TEXT, [])
    min_tokens: Any = neutral_only(NO_TEXT)
    presence_penalty: Any = neutral_only(NO_TEXT)
    frequency_penalty: Any = neutral_only(NO_TEXT)
    repetition_penalty: Any = neutral_only(NO_TEXT)
    logit_bias: Any = neutral_only(NO_TEXT, {})
    bad_words: Any = neutral_only(NO_TEXT, [])
    response_format: Any = neutral_only(NO_TEXT, {"type": "text"})
    tools: Any = neutral_only(NO_TEXT, [])
    tool_choice: Any = neutral_only(NO_TEXT, "none", "auto")
    prompt_logprobs: Any = neutral_only(NO_TEXT)
    add_generation_prompt: Any = neutral_only("the prompt ends with the scored message", False)
    continue_final_message: Any = neutral_only("the prompt ends with the scored message", False)
    truncate_prompt_tokens: Any = neutral_only("what is scored is never cut: shorten it")


@dataclass(frozen=True)
class TurnScores:
    """The scores of one turn."""

    scores: Mapping[str, float]
    """By the name of the attribute, in the model's order."""
    reward: float
    num_tokens: int
    """Number of tokens of the conversation up to the turn."""


def reward_answer(
    model: str, turns: Sequence[TurnScores], fingerprint: str | None = None
) -> dict[str, Any]:
    """Return the response: a choice for each turn.

    The scores are the message's text, and once more entries of `logprobs`, which most clients read.
    Ours are the plain reward and that nothing counts as generated.

    >>> turn = TurnScores({"helpfulness": 3.5, "correctness": 0.25}, 1.235, 20)
    >>> answer = reward_answer("nemotron", [turn])
    >>> answer["choices"][0]["message"]["content"]
    'helpfulness:3.5,correctness:0.25'
    """
    tokens = sum(turn.num_tokens for turn in turns)
    answer: dict[str, Any] = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [_choice(index, turn) for index, turn in enumerate(turns)],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
    }
    if fingerprint:
        answer["system_fingerprint"] = fingerprint
    return answer


def _choice(index: int, turn: TurnScores) -> dict[str, Any]:
    entries: list[dict[str, Any]] = [
        {"token": name, "logprob": score, "bytes": None, "top_logprobs": []}
        for name, score in turn.scores.items()
    ]
    return {
        "index": index,
        "message": {"role": "assistant", "content": scores_text(turn.scores)},
        "logprobs": {"content": entries},
        "finish_reason": FINISH_REASON,
        "reward": turn.reward,
    }
