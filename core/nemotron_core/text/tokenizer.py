"""The model's SentencePiece tokenizer, with control pieces that only the template can write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_core.errors import NemotronError
from nemotron_core.text.chat_format import CONTROL_PREFIX, ChatFormat
from nemotron_core.text.detokenizer import StreamingDetokenizer
from nemotron_core.text.prompt import Message, render_prompt
from nemotron_core.text.reward_prompt import render_scored

if TYPE_CHECKING:
    import sentencepiece

END_PIECES = ("</s>", "<|endoftext|>")
"""Pieces that end an answer besides the end of the turn. A tokenizer may lack the last of them."""

UNTYPABLE_PREFIX = "\udcff" * len(CONTROL_PREFIX)
"""Spelling of `CONTROL_PREFIX` in the chat vocabulary: bytes 0xFF, which no UTF-8 text contains."""


class Tokenizer:
    """Converts between text and token ids for one `tokenizer.model`. Safe to share between threads.

    SentencePiece matches `<extra_id_N>` anywhere in a text. A raw prompt needs that (`encode`), but
    a user's message must never become a control piece. So there are two vocabularies, which differ
    only in the spelling of these pieces: in the second, no Unicode text can spell them, only the
    chat template can (`encode_chat`). Everything else (normalization, spaces, merges over the whole
    prompt) is SentencePiece's own in both. So `encode_chat(messages)` equals
    `encode(render_prompt(messages))` unless a message contains a control piece.

    The prompt format is the one of `chat_format.json` beside the file, and without it the model
    card's. Raises `NemotronError` if a file cannot be read, this one is not a SentencePiece model,
    or it lacks a piece of the format.
    """

    def __init__(self, path: Path) -> None:
        try:
            model = path.read_bytes()
        except OSError as error:
            raise NemotronError(
                f"cannot read the tokenizer: {error.strerror}", where=path
            ) from error
        self._raw = _load(model, path)
        # The spelling has the same length, so that the serialized message stays valid.
        untypable = UNTYPABLE_PREFIX.encode(errors="surrogateescape")
        self._chat = _load(model.replace(CONTROL_PREFIX.encode(), untypable), path)
        self._texts: dict[int, str | int] = {}
        self._controls: dict[int, bool] = {}
        self.chat_format = ChatFormat.read(path.parent)
        missing = [p for p in self.chat_format.control_pieces if self.id_of(p) is None]
        if missing:
            raise NemotronError(
                f"the tokenizer has no piece {' or '.join(missing)}",
                where=path,
                remedy="use the tokenizer.model of a Nemotron-4 .nemo",
            )

    @property
    def vocab_size(self) -> int:
        """Number of pieces. The model's vocabulary may be padded beyond it."""
        return int(self._raw.vocab_size())

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer; the end of the turn comes first."""
        ids = map(self.id_of, (self.chat_format.end_piece, *END_PIECES))
        return tuple(id_ for id_ in ids if id_ is not None)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a raw prompt, without BOS. `<extra_id_N>` is the control piece."""
        return list(self._raw.encode(text))

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        answer_follows: bool = True,
        is_continued: bool = False,
    ) -> list[int]:
        """Return the ids of the prompt for `messages`. No content ever becomes a control piece.

        See `render_prompt` for the options.
        """
        prompt = render_prompt(
            messages,
            answer_follows=answer_follows,
            is_continued=is_continued,
            control_prefix=UNTYPABLE_PREFIX,
            chat_format=self.chat_format,
        )
        return list(self._chat.encode(prompt.encode(errors="surrogateescape")))

    def encode_scored(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids after which a reward model scores the last message; see `render_scored`.

        Raises `NemotronError` if the tokenizer has no piece to end them with.
        """
        if self.id_of("<extra_id_2>") is None:
            raise NemotronError("the tokenizer has no piece <extra_id_2>, which a reward needs")
        prompt = render_scored(messages, control_prefix=UNTYPABLE_PREFIX)
        return list(self._chat.encode(prompt.encode(errors="surrogateescape")))

    def decode(self, ids: Iterable[int], *, show_control: bool = False) -> str:
        """Return the text that `ids` add to a prompt, by the rules of `StreamingDetokenizer`."""
        return StreamingDetokenizer(self, show_control=show_control).push(map(int, ids))

    def token_text(self, id_: int) -> str | int:
        """Return the characters that one token adds to a text, or an int if it is a single byte.

        A control token adds its spelling if it is a piece like `<extra_id_1>`, and nothing
        otherwise. Ids beyond the tokenizer's pieces pad the model's vocabulary and add nothing.
        """
        text = self._texts.get(id_)
        if text is None:
            text = self._texts[id_] = self._token_text(id_)
        return text

    def is_control(self, id_: int) -> bool:
        """Return whether this token steers the model and is not part of its answer."""
        is_control = self._controls.get(id_)
        if is_control is None:
            is_control = self._controls[id_] = not 0 <= id_ < self.vocab_size or (
                bool(self._raw.is_control(id_)) or self.piece(id_).startswith(CONTROL_PREFIX)
            )
        return is_control

    def piece(self, id_: int) -> str:
        """Return a token as SentencePiece spells it, or "" for an id that pads the vocabulary."""
        return str(self._raw.id_to_piece(id_)) if 0 <= id_ < self.vocab_size else ""

    def id_of(self, piece: str) -> int | None:
        """Return the id of a piece, or `None` if there is no such piece."""
        id_ = int(self._raw.piece_to_id(piece))
        return None if self._raw.is_unknown(id_) else id_

    def _token_text(self, id_: int) -> str | int:
        if not 0 <= id_ < self.vocab_size:
            return ""
        if self._raw.is_byte(id_):
            return int(self._raw.id_to_piece(id_)[1:-1], base=16)  # "<0xE6>"
        # Decoded after another piece, because SentencePiece drops the space before the first piece.
        first = self.end_ids[0]
        return str(self._raw.decode([first, id_]))[len(self._raw.decode([first])) :]


def _load(model: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        # Loaded at its first use: reading the pieces of a model, as the converter does, needs none.
        import sentencepiece  # noqa: PLC0415

        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise NemotronError("this is not a SentencePiece model", where=path) from error
