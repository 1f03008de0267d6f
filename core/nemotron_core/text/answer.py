"""The text of an answer, from the engine's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_core.text.detokenizer import StreamingDetokenizer, TokenTexts
from nemotron_core.text.stop import StopStrings


class AnswerStream:
    r"""Turns one sequence's tokens into text, piece by piece. Joined, the pieces are the answer.

    How an answer ends depends on its prompt:

    - A conversation whose turns end with a newline (`chat=True`). The model closes its turn as the
      template does, with a newline and an end token. Both belong to the format and not to the
      answer, so exactly this newline is left out. A newline at the end of a piece is therefore held
      back until it is known not to be the closing newline. It is returned if the answer ends in
      another way (length, stop string, cancellation).
    - A raw prompt, or a conversation of another format (`chat=False`). The answer is all of the
      generated text, with its newline.

    The end token itself is never text. Stop strings are matched on the text that the model
    generated, including a closing newline.
    """

    def __init__(
        self,
        tokenizer: TokenTexts,
        *,
        chat: bool,
        end_ids: Sequence[int],
        stop_strings: Sequence[str] = (),
    ) -> None:
        self._detokenizer = StreamingDetokenizer(tokenizer)
        self._stops = StopStrings(stop_strings)
        self._chat = chat
        self._end_ids = frozenset(end_ids)
        self._held_newline = ""  # "" or "\n"

    @property
    def stop_reason(self) -> str | None:
        """The stop string that ended the answer, or `None`. Later tokens have no text."""
        return self._stops.matched

    def push(self, ids: Sequence[int], finish_reason: str = "") -> str:
        """Return the text that is final with these tokens.

        `finish_reason` is the engine's: "stop" after an end token, "length" or "cancelled". It is
        empty while more tokens follow.
        """
        if finish_reason == "stop" and len(ids) > 0 and ids[-1] in self._end_ids:
            ids = ids[:-1]
        text = self._stops.push(self._detokenizer.push(ids))
        if finish_reason:
            text += self._stops.finish()
        return self._without_closing_newline(text, finish_reason) if self._chat else text

    def _without_closing_newline(self, text: str, finish_reason: str) -> str:
        text = self._held_newline + text
        self._held_newline = ""
        ends_otherwise = self.stop_reason is not None or finish_reason not in ("", "stop")
        if ends_otherwise or not text.endswith("\n"):
            return text
        self._held_newline = "\n"
        return text[:-1]
