"""The response of Triton's model `reward`, as the scores of each turn."""

from __future__ import annotations

import msgspec

from nemotron_core.errors import ErrorKind
from nemotron_core.openai.errors import HttpError
from nemotron_core.openai.reward import TurnScores
from nemotron_core.reward import SCORED


class _Scores(msgspec.Struct):
    """Triton writes an output of one element as that element, any other as a flat list."""

    scores: tuple[float, ...]
    reward: float | tuple[float, ...]
    num_input_tokens: int | tuple[int, ...]


_decode_scores = msgspec.json.Decoder(_Scores).decode


def read_turns(content: bytes) -> list[TurnScores]:
    """Return the scores in a response. Raises `HttpError` if there are none."""
    try:
        answer = _decode_scores(content)
    except msgspec.MsgspecError as error:
        message = f"Triton sent no scores: {error}"
        raise HttpError.of_kind(ErrorKind.FAILED, message) from error
    rewards, tokens = (
        number if isinstance(number, tuple) else (number,)
        for number in (answer.reward, answer.num_input_tokens)
    )
    width = len(SCORED)
    if len(answer.scores) != width * len(rewards) or len(tokens) != len(rewards):
        message = "Triton sent scores of another number of turns"
        raise HttpError.of_kind(ErrorKind.FAILED, message)
    return [
        TurnScores(
            dict(zip(SCORED, answer.scores[turn * width : (turn + 1) * width], strict=True)),
            rewards[turn],
            int(tokens[turn]),
        )
        for turn in range(len(rewards))
    ]
