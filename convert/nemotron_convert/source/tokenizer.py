"""The tokenizer of a model, checked before anything is converted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nemotron_convert.source.archive import Archive, read_bytes
from nemotron_convert.source.config_file import ModelSettings
from nemotron_convert.source.tokenizer_json import (
    TOKENIZER_JSON_NAME,
    added_tokens,
    sentencepiece_model,
)
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_core.text.sentencepiece_model import SentencePieceModel

TOKENIZER_LIMIT = 64 << 20
"""Largest size in bytes of the SentencePiece model."""
DIVISOR, TP = "make_vocab_size_divisible_by", "tensor_model_parallel_size"
"""The settings to whose product NeMo pads the vocabulary."""
DEFAULT_PADDING = 1024
"""Rows to a multiple of which any vocabulary may be padded: 128 for each of 8 ranks."""


def read_tokenizer(archive: Archive, settings: ModelSettings, vocab_size: int) -> bytes:
    """Return the serialized SentencePiece model.

    Raises `NemotronError` if it is no such model, or has not the vocabulary of an embedding of
    `vocab_size` rows, which may only be padded.
    """
    name = settings.model.tokenizer_member
    if not name:
        raise NemotronError(
            "there is no SentencePiece file (*.model)",
            where=archive.path,
            remedy="put the model's tokenizer.model into context/",
        )
    where = f"{archive.path}: {name}"
    data = read_bytes(archive, name, limit=TOKENIZER_LIMIT)
    if not data:
        raise NemotronError("the tokenizer is empty", where=where, remedy="copy it again")
    with _named(archive, name):
        if name.endswith(".json"):
            data = sentencepiece_model(data)
        pieces = SentencePieceModel.count_pieces(data)
    factors = [settings.raw.get(DIVISOR), settings.raw.get(TP)]
    padding = 1
    for factor in factors:
        padding *= factor if type(factor) is int and 0 < factor < 1 << 20 else 1
    if not pieces <= vocab_size < pieces + max(padding, DEFAULT_PADDING):
        raise NemotronError(
            f"the tokenizer has {pieces} pieces, the embedding {vocab_size} rows",
            where=where,
            remedy="put the tokenizer there with which the model was trained",
        )
    return data


def find_tokenizer(archive: Archive) -> str:
    """Return the name of the tokenizer's file in a Hugging Face folder.

    Raises `NemotronError` if there is none, several, or one that lacks tokens of the other form.
    """
    models = [name for name in archive.members if "/" not in name and name.endswith(".model")]
    if TOKENIZER_NAME in models:
        models = [TOKENIZER_NAME]
    has_json = TOKENIZER_JSON_NAME in archive.members
    if len(models) > 1 or not (models or has_json):
        found = f"{len(models)} SentencePiece files (*.model)" if models else "no tokenizer"
        raise NemotronError(
            f"{found} in it",
            where=archive.path,
            remedy=f"put the model's {TOKENIZER_NAME} or {TOKENIZER_JSON_NAME} there",
        )
    if not models:
        return TOKENIZER_JSON_NAME
    if has_json:
        _require_same_tokens(archive, models[0])
    return models[0]


@contextmanager
def _named(archive: Archive, name: str) -> Iterator[None]:
    """Add the file and what to do to the errors of the block, which reads the file's content."""
    try:
        yield
    except NemotronError as error:
        where = error.where or f"{archive.path}: {name}"
        raise NemotronError(
            error.what, where=where, remedy=error.remedy or "copy it again"
        ) from error


def _require_same_tokens(archive: Archive, model: str) -> None:
    """Raise `NemotronError` if `tokenizer.json` has added tokens that the other file lacks."""
    data = read_bytes(archive, TOKENIZER_JSON_NAME, limit=TOKENIZER_LIMIT)
    with _named(archive, TOKENIZER_JSON_NAME):
        added = added_tokens(data)
    with _named(archive, model):
        pieces = SentencePieceModel.parse(read_bytes(archive, model, limit=TOKENIZER_LIMIT)).pieces
    for number, text in sorted(added.items()):
        if number >= len(pieces) or pieces[number].text != text:
            raise NemotronError(
                f"token {number}, {text[:40]!r}, is in {TOKENIZER_JSON_NAME} only",
                where=f"{archive.path}: {model}",
                remedy=f"if the tokens were added on purpose, remove {model}, so that "
                f"{TOKENIZER_JSON_NAME} is read",
            )
