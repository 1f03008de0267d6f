"""The prompts of one request, as they go from one model to the other."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from nemotron_core.errors import NemotronError
from nemotron_core.generation import MAX_SEED
from nemotron_engine.client import new_key
from nemotron_engine.protocol import Request

PIECE_SECONDS = 0.05
"""Least time between two responses of one streamed answer: 20 texts a second look smooth. More
responses bring no more tokens, but take the processor from whatever needs it."""


class AnswerSettings(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What turns the tokens of one answer into its text and its outputs."""

    chat: bool = False
    """Whether the prompt is a conversation whose turns end with a newline; see `AnswerStream`."""
    end_ids: list[int] = []
    stop_strings: list[str] = []
    prefix: str = ""
    """Text in front of the answer: its prompt, if the request asks for it."""
    prefix_ids: list[int] = []
    """The same as tokens, where the outputs are tokens."""
    num_input_tokens: int = 0
    batch_index: int = 0
    sequence_index: int = 0


class RequestSettings(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What all answers to one request have in common."""

    stream: bool = False
    """Whether the client receives the answers in pieces."""
    single_tokens: bool = False
    """Whether a piece is sent as soon as there is a token for it."""
    log_probs: bool = False
    top: int = 0
    """Number of alternatives at each token of the answers."""
    prompt_top: int = 0
    """The same at each token of the prompt."""
    times: bool = False
    cache_stats: bool = False
    pad_id: int = 0
    """Token that fills up the rows of outputs with several answers."""


class Prompts(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """The sequences of one request, in the order batch, then sequence, and their answers."""

    requests: list[Request]
    answers: list[AnswerSettings]
    settings: RequestSettings

    @classmethod
    def of_blob(cls, blob: bytes) -> Prompts:
        """Return the prompts that `preprocessing` encoded. Raises `NemotronError` for others."""
        try:
            prompts = msgspec.msgpack.decode(blob, type=cls)
        except msgspec.MsgspecError as error:
            raise NemotronError(f"not made by preprocessing: {error}", where="prompt") from error
        keys = {request.key for request in prompts.requests}
        if not keys or not len(keys) == len(prompts.requests) == len(prompts.answers):
            raise NemotronError("not made by preprocessing", where="prompt")
        return prompts

    @classmethod
    def of_rows(
        cls, rows: Iterable[tuple[Request, AnswerSettings, int]], settings: RequestSettings
    ) -> Prompts:
        """Return the sequences of each row's prompt, which has a number of answers.

        Each sequence gets a key of its own, and the seed of its row plus its index.
        """
        requests, answers = [], []
        for request, answer, count in rows:
            seconds = _chunk_seconds(answer, settings)
            for index in range(count):
                seed = (request.seed + index) % (MAX_SEED + 1)
                requests.append(replace(request, key=new_key(), seed=seed, chunk_seconds=seconds))
                answers.append(replace(answer, sequence_index=index))
        return cls(requests=requests, answers=answers, settings=settings)


def _chunk_seconds(answer: AnswerSettings, settings: RequestSettings) -> float:
    """Return how often the engine's tokens are of use."""
    if not settings.stream and not answer.stop_strings:
        return math.inf  # nothing before the last chunk makes a difference
    return 0.0 if settings.single_tokens else PIECE_SECONDS
