"""Tokens as OpenAI's API and NeMo's show them: their text, their bytes, their place in the text."""

from __future__ import annotations

from nemotron_core.generation import Piece
from nemotron_core.text import StreamingDetokenizer, Tokenizer


def chat_log_probs(tokenizer: Tokenizer, piece: Piece) -> dict[str, object]:
    """Return `logprobs` of a chat's choice for the tokens of a piece.

    Each token has its bytes, because a token may be only a part of a character.
    """
    content = []
    for token_id, log_prob in zip(piece.token_ids, piece.log_probs, strict=True):
        text, data = _text_and_bytes(tokenizer, token_id)
        content.append({"token": text, "logprob": log_prob, "bytes": data, "top_logprobs": []})
    return {"content": content, "refusal": None}


def completion_log_probs(
    tokenizer: Tokenizer, piece: Piece, offset: int
) -> tuple[dict[str, object], int]:
    """Return `logprobs` of a completion's choice for a piece, and the offset of the next piece.

    `offset` is the number of characters of the answer before this piece.
    """
    tokens, offsets = [], []
    for token_id in piece.token_ids:
        tokens.append(_text_and_bytes(tokenizer, token_id)[0])
        offsets.append(offset)
        offset += len(tokenizer.decode([token_id]))
    return {
        "tokens": tokens,
        "token_logprobs": list(piece.log_probs),
        "top_logprobs": None,
        "text_offset": offsets,
    }, offset


def _text_and_bytes(tokenizer: Tokenizer, token_id: int) -> tuple[str, list[int]]:
    text = tokenizer.token_text(token_id)
    if isinstance(text, int):
        return f"bytes:\\x{text:02x}", [text]
    return text, list(text.encode())


class VisibleText:
    """Text that grows token by token, with control pieces visible, as NeMo shows it."""

    def __init__(self, tokenizer: Tokenizer, prompt: str) -> None:
        self._detokenizer = StreamingDetokenizer(tokenizer, show_control=True)
        self.text = prompt

    def push(self, token_id: int) -> int:
        """Add a token. Return the offset at which its characters begin."""
        offset = len(self.text)
        self.text += self._detokenizer.push([token_id])
        return offset
