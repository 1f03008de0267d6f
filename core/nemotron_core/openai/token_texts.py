"""Tokens as OpenAI's API and NeMo's show them: texts, bytes, places in the text."""

from __future__ import annotations

from nemotron_core.generation import Piece
from nemotron_core.text import StreamingDetokenizer, Tokenizer


def chat_log_probs(tokenizer: Tokenizer, piece: Piece) -> dict[str, object]:
    """Of a chat's piece, with the bytes of a token that is no character by itself."""
    content = []
    for id_, log_prob in zip(piece.token_ids, piece.log_probs, strict=True):
        text, data = _text_and_bytes(tokenizer, id_)
        content.append({"token": text, "logprob": log_prob, "bytes": data, "top_logprobs": []})
    return {"content": content, "refusal": None}


def completion_log_probs(
    tokenizer: Tokenizer, piece: Piece, offset: int
) -> tuple[dict[str, object], int]:
    """Of a completion's piece whose text begins at `offset`; where the next one begins."""
    tokens, offsets = [], []
    for id_ in piece.token_ids:
        tokens.append(_text_and_bytes(tokenizer, id_)[0])
        offsets.append(offset)
        offset += len(tokenizer.decode([id_]))
    return {
        "tokens": tokens,
        "token_logprobs": list(piece.log_probs),
        "top_logprobs": None,
        "text_offset": offsets,
    }, offset


def _text_and_bytes(tokenizer: Tokenizer, id_: int) -> tuple[str, list[int]]:
    text = tokenizer.token_text(id_)
    if isinstance(text, int):
        return f"bytes:\\x{text:02x}", [text]
    return text, list(text.encode())


class VisibleText:
    """Tokens to text as NeMo shows it, control pieces visible, with each token's place in it."""

    def __init__(self, tokenizer: Tokenizer, prompt: str) -> None:
        self._detokenizer = StreamingDetokenizer(tokenizer, show_control=True)
        self.text = prompt

    def push(self, id_: int) -> int:
        """Add a token; where its characters begin."""
        offset = len(self.text)
        self.text += self._detokenizer.push([id_])
        return offset
