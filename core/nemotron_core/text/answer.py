"""From the engine's tokens to the answer a person reads."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_core.text.detokenizer import StreamingDetokenizer
from nemotron_core.text.stop import StopStrings
from nemotron_core.text.tokenizer import Tokenizer


class AnswerStream:
    r"""The text of one generation, piece by piece; together the pieces are the whole answer.

    Two kinds of prompt end differently:

    - A conversation (`chat=True`). The model closes its turn as the template does, with a newline
      and an end token. Both belong to the format, not to the answer, so exactly this one newline
      is left out. A final newline is therefore held back until it is known not to be the closing
      one; it is given out if the answer ends in any other way (length, stop string, cancel).
    - A raw prompt (`chat=False`). The text is what the model wrote, newline included.

    In both the end token itself is not text. Stop strings are looked for in what the model wrote,
    a closing newline included.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        chat: bool,
        end_ids: Sequence[int],
        stop_strings: Sequence[str] = (),
    ) -> None:
        self._detokenizer = StreamingDetokenizer(tokenizer)
        self._stops = StopStrings(stop_strings)
        self._chat = chat
        self._end_ids = frozenset(end_ids)
        self._newline = ""  # held back: "" or "\n"

    @property
    def stop_reason(self) -> str | None:
        """The stop string that ended the answer; nothing that is pushed later counts."""
        return self._stops.matched

    def push(self, ids: Sequence[int], finish_reason: str = "") -> str:
        """The text that became certain with these tokens.

        `finish_reason` is the engine's, empty while more tokens follow: "stop" after an end token,
        "length" or "cancelled".
        """
        if finish_reason == "stop" and len(ids) > 0 and ids[-1] in self._end_ids:
            ids = ids[:-1]
        text = self._stops.push(self._detokenizer.push(ids))
        if finish_reason:
            text += self._stops.finish()
        return self._without_closing_newline(text, finish_reason) if self._chat else text

    def _without_closing_newline(self, text: str, finish_reason: str) -> str:
        text = self._newline + text
        self._newline = ""
        decided = self.stop_reason is not None or finish_reason not in ("", "stop")
        if decided or not text.endswith("\n"):
            return text
        if not finish_reason:
            self._newline = "\n"
        return text[:-1]
