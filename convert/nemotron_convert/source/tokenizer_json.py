"""A `tokenizer.json` as the SentencePiece model from which it was made.

Everything here tokenizes with SentencePiece, so a folder that has its tokenizer only in Hugging
Face's form gets that model back: the same pieces, scores and normalization. Both then tokenize some
texts, and a tokenizer that gives other tokens is refused.
"""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.text.chat_format import CONTROL_PREFIX
from nemotron_core.text.sentencepiece_model import (
    Algorithm,
    Piece,
    PieceType,
    SentencePieceModel,
    serialize,
)

TOKENIZER_JSON_NAME = "tokenizer.json"
SPACE = "▁"
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
SAMPLED_PIECES = 2000
"""Number of pieces whose texts are tokenized for comparison, drawn with a fixed seed."""
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces,\ttab,\n\nlines \n",
    "1234567890 3.14159 -1e-05 0xFF",
    "def f(x):\n    return {'a': [1, 2]}\n",
    "Größe, naïve, señor, ¿qué?",
    "Привет, мир! Γειά σου",
    "日本語のテキスト、한국어, 中文",
    "🙂👩‍👩‍👧 ﬁ ½ ℃",
    f"{CONTROL_PREFIX}0>System\n\n{CONTROL_PREFIX}1>User\nHi\n{CONTROL_PREFIX}1>Assistant\n",
    "",
)
"""Texts that are tokenized for comparison."""
FAULTS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading and writing a file of another form raises."""


def sentencepiece_model(data: bytes) -> bytes:
    """Return the serialized SentencePiece model of a `tokenizer.json`.

    Raises `NemotronError` if it is not valid, is of a kind that SentencePiece has not, or does not
    give SentencePiece's tokens.
    """
    try:
        model = _model(json.loads(data))
        serialized = serialize(model)
    except FAULTS as error:
        raise NemotronError(f"not a tokenizer of a known form: {error}"[:200]) from error
    _compare(data, serialized, model)
    return serialized


def added_tokens(data: bytes) -> dict[int, str]:
    """Return the tokens that a `tokenizer.json` has beside its vocabulary, by id.

    Raises `NemotronError` if it is not valid.
    """
    try:
        return {int(token["id"]): str(token["content"]) for token in _added(json.loads(data))}
    except FAULTS as error:
        raise NemotronError(f"not a tokenizer of a known form: {error}"[:200]) from error


def _model(content: Mapping[str, Any]) -> SentencePieceModel:
    kind = content["model"].get("type")
    if kind not in ("BPE", "Unigram"):
        raise NemotronError(f"the tokenizer is of the kind {kind}, SentencePiece has none such")
    steps = [*_steps(content.get("normalizer")), *_steps(content.get("pre_tokenizer"))]
    charsmap, has_prefix, is_stripped, escapes = b"", False, False, False
    for step in steps:
        name = step["type"]
        if name == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"] or "")
        elif name == "Prepend" and step["prepend"] == SPACE:
            has_prefix = True
        elif name == "Metaspace" and step.get("replacement") == SPACE:
            escapes = True
            default = "always" if step.get("add_prefix_space", True) else "never"
            has_prefix = has_prefix or step.get("prepend_scheme", default) != "never"
        elif name == "Replace" and (step["pattern"], step["content"]) == ({"String": " "}, SPACE):
            escapes = True
        elif name == "Strip" or (name == "Replace" and step["content"] == " "):
            is_stripped = True
        else:
            raise NemotronError(f"the tokenizer has the step {name}, SentencePiece has none such")
    if not escapes:
        raise NemotronError("the tokenizer does not escape spaces as SentencePiece does")
    return SentencePieceModel(
        pieces=_pieces(content),
        algorithm=Algorithm.BPE if kind == "BPE" else Algorithm.UNIGRAM,
        byte_fallback=bool(content["model"].get("byte_fallback")),
        charsmap=charsmap,
        add_dummy_prefix=has_prefix,
        remove_extra_whitespaces=is_stripped,
        escape_whitespaces=True,
    )


def _steps(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer."""
    if step is None:
        return []
    parts = step.get("normalizers", step.get("pretokenizers"))
    return [step] if parts is None else [inner for part in parts for inner in _steps(part)]


def _added(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(content.get("added_tokens") or [])


def _pieces(content: Mapping[str, Any]) -> tuple[Piece, ...]:
    """Return the pieces in the order of their ids, which must have no gaps."""
    model, added = content["model"], _added(content)
    texts, score = _bpe(model) if model["type"] == "BPE" else _unigram(model)
    special = {token["content"]: bool(token.get("special")) for token in added}
    texts |= {int(token["id"]): token["content"] for token in added}
    unknown = texts.get(model.get("unk_id"), model.get("unk_token"))
    gap = next((i for i in range(len(texts)) if i not in texts), None)
    if gap is not None:
        raise NemotronError(f"the tokenizer has no token {gap}")

    def type_of(text: str) -> PieceType:
        if text == unknown:
            return PieceType.UNKNOWN
        if text in special:
            is_control = special[text] and not text.startswith(CONTROL_PREFIX)
            return PieceType.CONTROL if is_control else PieceType.USER_DEFINED
        is_byte = bool(model.get("byte_fallback")) and BYTE_PIECE.fullmatch(text)
        return PieceType.BYTE if is_byte else PieceType.NORMAL

    return tuple(Piece(texts[i], score(texts[i]), type_of(texts[i])) for i in range(len(texts)))


def _unigram(model: Mapping[str, Any]) -> tuple[dict[int, str], Callable[[str], float]]:
    scores = {text: float(score) for text, score in model["vocab"]}
    return {i: text for i, (text, _) in enumerate(model["vocab"])}, lambda text: scores.get(text, 0)


def _bpe(model: Mapping[str, Any]) -> tuple[dict[int, str], Callable[[str], float]]:
    """Return the texts by id, and the score that orders SentencePiece's merges like the ranks."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        ranks.setdefault(left + right, rank)
    order = {text: float(-i) for i, text in enumerate(sorted(ranks, key=ranks.__getitem__))}
    last = float(-len(order))
    return {i: text for text, i in model["vocab"].items()}, lambda text: order.get(text, last)


def _compare(data: bytes, serialized: bytes, model: SentencePieceModel) -> None:
    """Raise `NemotronError` if the two tokenize a text differently."""
    # Loaded by the conversions that need them: they take a tenth of the start.
    import sentencepiece  # noqa: PLC0415
    from tokenizers import Tokenizer  # noqa: PLC0415

    try:
        theirs = Tokenizer.from_str(data.decode())
        ours = sentencepiece.SentencePieceProcessor(model_proto=serialized)
    except Exception as error:
        raise NemotronError(f"not a tokenizer that can be loaded: {error}"[:200]) from error
    normal = [piece.text for piece in model.pieces if piece.type is PieceType.NORMAL]
    drawn = random.Random(1).sample(normal, min(SAMPLED_PIECES, len(normal)))  # noqa: S311
    for text in (*TEXTS, *(piece.replace(SPACE, " ") for piece in drawn)):
        if (
            model.add_dummy_prefix
        ):  # in front of a space or a control piece only SentencePiece has it
            text = "x" + text  # noqa: PLW2901
        if theirs.encode(text, add_special_tokens=False).ids != list(ours.encode(text)):
            raise NemotronError(
                f"the tokenizer cuts {text[:60]!r} in another way than SentencePiece",
                remedy="put the model's tokenizer.model beside it",
            )
