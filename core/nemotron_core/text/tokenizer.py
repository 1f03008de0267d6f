"""The model's SentencePiece tokenizer, with control pieces that only the template can write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import sentencepiece

from nemotron_core.errors import NemotronError
from nemotron_core.text.detokenizer import StreamingDetokenizer
from nemotron_core.text.prompt import CONTROL_PREFIX, Message, render_prompt

END_PIECES = ("<extra_id_1>", "</s>", "<|endoftext|>")
"""Pieces that end an answer, in the order of preference; the tokenizer may lack the last."""

UNTYPABLE_PREFIX = "\udcff" * len(CONTROL_PREFIX)
"""Spells `CONTROL_PREFIX` in the chat vocabulary: bytes 0xFF, which no UTF-8 text contains."""


class Tokenizer:
    """Text ↔ token ids for one `tokenizer.model`; immutable, safe to share between threads.

    SentencePiece matches `<extra_id_N>` wherever it stands in a text. That is what a raw prompt
    wants (`encode`), and what a user's message must never do. So there are two vocabularies, equal
    but for the spelling of these pieces: in the second no Unicode text can spell them, only the
    chat template does (`encode_chat`). Everything else (normalization, spaces, merges over the
    whole prompt) is SentencePiece's own in both, so that where no message contains a control piece
    `encode_chat(messages) == encode(render_prompt(messages))`.
    """

    def __init__(self, path: Path) -> None:
        try:
            model = path.read_bytes()
        except OSError as error:
            raise NemotronError(
                f"cannot read the tokenizer: {error.strerror}", where=path
            ) from error
        self._raw = _load(model, path)
        # Same length, so that the serialized message around the string stays valid as it is.
        untypable = UNTYPABLE_PREFIX.encode(errors="surrogateescape")
        self._chat = _load(model.replace(CONTROL_PREFIX.encode(), untypable), path)
        self._texts: dict[int, str | int] = {}
        missing = [p for p in ("<extra_id_0>", "<extra_id_1>") if self.id_of(p) is None]
        if missing:
            raise NemotronError(
                f"the tokenizer has no piece {' or '.join(missing)}",
                where=path,
                remedy="use the tokenizer.model of a Nemotron-4 .nemo",
            )

    @property
    def vocab_size(self) -> int:
        """Number of pieces; the model's vocabulary may be padded beyond it."""
        return int(self._raw.vocab_size())

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, the end of turn first."""
        found = (self.id_of(piece) for piece in END_PIECES)
        return tuple(id_ for id_ in found if id_ is not None)

    def encode(self, text: str) -> list[int]:
        """Ids of a raw prompt: `<extra_id_N>` in the text is the control piece; no BOS in front."""
        return list(self._raw.encode(text))

    def encode_chat(self, messages: Sequence[Message], *, answer_follows: bool = True) -> list[int]:
        """Ids of the prompt for `messages`; no content ever becomes a control piece."""
        prompt = render_prompt(
            messages, answer_follows=answer_follows, control_prefix=UNTYPABLE_PREFIX
        )
        return list(self._chat.encode(prompt.encode(errors="surrogateescape")))

    def decode(self, ids: Iterable[int], *, show_control: bool = False) -> str:
        """The text that `ids` add to a prompt, by the rules of `StreamingDetokenizer`."""
        return StreamingDetokenizer(self, show_control=show_control).push(ids)

    def token_text(self, id_: int) -> str | int:
        """What one token contributes to a text: characters, or an int for a single byte.

        Control tokens contribute their spelling if they are pieces like `<extra_id_1>` and nothing
        otherwise. Rows beyond the tokenizer's pieces only pad the model's vocabulary: no text.
        """
        text = self._texts.get(id_)
        if text is None:
            text = self._texts[id_] = self._token_text(id_)
        return text

    def is_control(self, id_: int) -> bool:
        """Whether this token steers the model and is no part of its answer."""
        if not 0 <= id_ < self.vocab_size:
            return True
        return bool(self._raw.is_control(id_)) or (
            self._raw.id_to_piece(id_).startswith(CONTROL_PREFIX)
        )

    def piece(self, id_: int) -> str:
        """A token as SentencePiece spells it; nothing for rows that only pad the vocabulary."""
        return str(self._raw.id_to_piece(id_)) if 0 <= id_ < self.vocab_size else ""

    def id_of(self, piece: str) -> int | None:
        """None if there is no such piece."""
        id_ = int(self._raw.piece_to_id(piece))
        return None if self._raw.is_unknown(id_) else id_

    def _token_text(self, id_: int) -> str | int:
        if not 0 <= id_ < self.vocab_size:
            return ""
        if self._raw.is_byte(id_):
            return int(self._raw.id_to_piece(id_)[1:-1], base=16)  # "<0xE6>"
        # Behind another piece, for SentencePiece drops the space in front of a text's first one.
        first = self.end_ids[0]
        return str(self._raw.decode([first, id_]))[len(self._raw.decode([first])) :]


def _load(model: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise NemotronError("this is not a SentencePiece model", where=path) from error
