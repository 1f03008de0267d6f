"""What the adapters of a reward model have in common: capabilities, and which requests go together.

A reward model computes each request in one step, at the end of which it has its scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_core.reward import RewardHead
from nemotron_engine.protocol import Capabilities, Chunk, Request


def reward_capabilities(head: RewardHead) -> Capabilities:
    """Return what an engine with this head can do."""
    return Capabilities(kind="reward", attributes=list(head.attributes), weights=list(head.weights))


def score_chunk(key: bytes, scores: Sequence[float]) -> Chunk:
    """Return the only chunk of a request for scores."""
    return Chunk(key, finish_reason="stop", scores=list(scores))


def choose_batch(waiting: Sequence[Request], max_tokens: int, max_count: int) -> list[Request]:
    """Return the requests to compute together, the oldest one of `waiting` among them.

    They are padded to the longest one, so the oldest gets those of about its own length for
    company, as many as `max_tokens` have room for with the padding. A request that is longer than
    that is computed alone.
    """
    oldest, *others = waiting
    batch, longest = [oldest], len(oldest.input_ids)
    for request in sorted(others, key=lambda other: abs(len(other.input_ids) - longest)):
        width = max(longest, len(request.input_ids))
        if len(batch) == max_count or (len(batch) + 1) * width > max_tokens:
            break
        batch.append(request)
        longest = width
    return batch
