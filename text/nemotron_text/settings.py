"""What has to be known of a request to turn its tokens into its answer."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """Travels with the tokens as JSON, from where the prompt is made to where the text is.

    >>> settings = AnswerSettings(stream_id="7", chat=True, stream=True, end_ids=(5,),
    ...     stop_strings=(), num_input_tokens=9)
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

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, source: bytes) -> AnswerSettings:
        fields = json.loads(source)
        fields["end_ids"] = tuple(fields["end_ids"])
        fields["stop_strings"] = tuple(fields["stop_strings"])
        return cls(**fields)
