"""What has to be known of a request to turn its tokens into its answer."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from nemotron_core.errors import NemotronError


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """Travels with the tokens as JSON, from where the prompt is made to where the text is.

    >>> settings = AnswerSettings(stream_id="7", chat=True, stream=True, end_ids=(5,),
    ...     stop_strings=(), num_input_tokens=9, max_tokens=64)
    >>> AnswerSettings.from_json(settings.to_json()) == settings
    True
    """

    stream_id: str
    """Unique among all requests."""
    chat: bool
    """See `AnswerStream`."""
    stream: bool
    """The answer goes out piece by piece, not whole."""
    end_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    num_input_tokens: int
    max_tokens: int

    def sequence_id(self, sequence: int) -> str:
        """By which the engine stops one of several answers; `stream_id` stops all of them."""
        return f"{self.stream_id}/{sequence}"

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, source: str | bytes) -> AnswerSettings:
        """NemotronError if this is not what `to_json` writes."""
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
