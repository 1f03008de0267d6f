"""Tokens as OpenAI's API and NeMo's show them: their text, their bytes, their place in the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nemotron_core.generation import Alternatives, Piece
from nemotron_core.text import StreamingDetokenizer, Tokenizer


@dataclass(frozen=True)
class TokenScore:
    """A token with its log-probability, which the first token of a prompt has not."""

    id_: int
    log_prob: float | None
    top: Alternatives = ()
    """The most probable tokens in its place."""


def answer_scores(piece: Piece) -> list[TokenScore]:
    """Return the tokens of a piece."""
    tops = piece.top_log_probs or ((),) * len(piece.token_ids)
    rows = zip(piece.token_ids, piece.log_probs, tops, strict=True)
    return [TokenScore(id_, log_prob, top) for id_, log_prob, top in rows]


def prompt_scores(ids: Sequence[int], piece: Piece, top: int) -> list[TokenScore]:
    """Return the tokens of a prompt, each with `top` others, from its answer's piece."""
    scores = []
    for id_, entries in zip(ids, piece.prompt_log_probs, strict=True):
        own = entries[0][1] if entries else None
        scores.append(TokenScore(id_, own, entries[1 : 1 + top]))
    return scores


def chat_log_probs(tokenizer: Tokenizer, scores: Sequence[TokenScore]) -> dict[str, object]:
    """Return `logprobs` of a chat's choice.

    Each token has its bytes, because a token may be only a part of a character.
    """
    content = []
    for score in scores:
        top = [_chat_token(tokenizer, id_, log_prob) for id_, log_prob in score.top]
        own = _chat_token(tokenizer, score.id_, score.log_prob)
        content.append(own | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def completion_log_probs(
    tokenizer: Tokenizer, scores: Sequence[TokenScore], offsets: Sequence[int], *, has_top: bool
) -> dict[str, object]:
    """Return `logprobs` of a completion's choice, whose tokens begin at `offsets` in its text."""
    tops: list[dict[str, float] | None] = []
    for score in scores if has_top else ():
        if score.log_prob is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        # The tokens are keys, so of two tokens with one text the more probable one stays.
        for id_, log_prob in (*score.top, (score.id_, score.log_prob)):
            text = token_text(tokenizer, id_)
            top[text] = max(log_prob, top.get(text, log_prob))
        tops.append(top)
    return {
        "tokens": [token_text(tokenizer, score.id_) for score in scores],
        "token_logprobs": [score.log_prob for score in scores],
        "top_logprobs": tops if has_top else None,
        "text_offset": list(offsets),
    }


def prompt_log_probs(
    tokenizer: Tokenizer, scores: Sequence[TokenScore]
) -> list[dict[str, dict[str, object]] | None]:
    """Return vLLM's `prompt_logprobs`: for each token of the prompt, tokens by their ids.

    The rank is known for the most probable tokens only.
    """
    rows: list[dict[str, dict[str, object]] | None] = []
    for score in scores:
        if score.log_prob is None:
            rows.append(None)
            continue
        ranks = {id_: rank for rank, (id_, _) in enumerate(score.top, 1)}
        row: dict[str, dict[str, object]] = {}
        for id_, log_prob in ((score.id_, score.log_prob), *score.top):
            row[str(id_)] = {
                "logprob": log_prob,
                "rank": ranks.get(id_),
                "decoded_token": token_text(tokenizer, id_),
            }
        rows.append(row)
    return rows


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token's text as OpenAI's API shows it."""
    text = tokenizer.token_text(token_id)
    return f"bytes:\\x{text:02x}" if isinstance(text, int) else text


def _chat_token(tokenizer: Tokenizer, token_id: int, log_prob: float | None) -> dict[str, object]:
    text = tokenizer.token_text(token_id)
    data = [text] if isinstance(text, int) else list(text.encode())
    return {"token": token_text(tokenizer, token_id), "logprob": log_prob, "bytes": data}


class TextOffsets:
    r"""The position in a text, in characters, at which each of its tokens begins.

    The tokens of one character begin where it does. Of bytes that are no character, each is one
    U+FFFD. Which of the two they are is known only with the tokens that follow, so `push` returns
    the offsets that are settled, in the order of the tokens.

    >>> class Vocabulary:  # three bytes of "日" and a word
    ...     texts = (0xE6, 0x97, 0xA5, " word")
    ...     def token_text(self, id_): return self.texts[id_]
    ...     def is_control(self, id_): return False
    >>> offsets = TextOffsets(Vocabulary())
    >>> [offsets.push([id_]) for id_ in (3, 0, 1, 2, 3, 0, 1, 3)]
    [[0], [], [], [5, 5, 5], [6], [], [], [11, 12, 13]]
    """

    def __init__(self, tokenizer: Tokenizer, start: int = 0, *, show_control: bool = False) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = StreamingDetokenizer(tokenizer, show_control=show_control)
        self._held = bytearray()
        """Bytes whose tokens' offsets are not settled."""
        self.length = start
        """Number of characters so far."""

    def push(self, ids: Iterable[int]) -> list[int]:
        """Add tokens. Return the offsets that are settled now."""
        offsets: list[int] = []
        for id_ in ids:
            text, byte = self._detokenizer.push([id_]), self._tokenizer.token_text(id_)
            is_byte = isinstance(byte, int)
            if isinstance(byte, int):
                self._held.append(byte)
            while self._held and text:
                character = text[0].encode()
                # U+FFFD stands for one byte, unless the bytes are its own.
                count = len(character) if self._held.startswith(character) else 1
                offsets += [self.length] * count
                del self._held[:count]
                self.length += 1
                text = text[1:]
            if not is_byte:
                offsets.append(self.length)
                self.length += len(text)
        return offsets

    def finish(self) -> list[int]:
        """Return the offsets of the tokens that are left: of a character that is not whole."""
        offsets = [self.length] * len(self._held)
        self._held.clear()
        return offsets
