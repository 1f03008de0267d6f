"""Settings of a request that turn its tokens into its answer."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from nemotron_core.errors import NemotronError


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """Settings that travel as JSON with the tokens, from the prompt's model to the text's model.

    >>> settings = AnswerSettings(stream_id="7", chat=True, stream=True, end_ids=(5,),
    ...     stop_strings=(), num_input_tokens=9, max_tokens=64)
    >>> AnswerSettings.from_json(settings.to_json()) == settings
    True
    """

    stream_id: str
    """Id of the request, unique among all requests."""
    chat: bool
    """Whether the prompt is a conversation; see `AnswerStream`."""
    stream: bool
    """Whether the client receives the answer in pieces."""
    end_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    num_input_tokens: int
    max_tokens: int

    def sequence_id(self, sequence: int) -> str:
        """Return the id that stops one sequence; `stream_id` stops all sequences of the request."""
        return f"{self.stream_id}/{sequence}"

    def to_json(self) -> bytes:
        """Return the settings as JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, source: str | bytes) -> AnswerSettings:
        """Return the settings that `to_json` wrote. Raises `NemotronError` for anything else."""
        try:
            fields = json.loads(source)
            lists = {name: tuple(fields[name]) for name in ("end_ids", "stop_strings")}
            return cls(**(fields | lists))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise NemotronError(
                "these are no settings of an answer",
                where="answer_settings",
                remedy="send prompts to the model ensemble, which makes them",
            ) from error
