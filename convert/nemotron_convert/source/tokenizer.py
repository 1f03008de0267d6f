"""The tokenizer of a `.nemo`, checked before anything is converted."""

from __future__ import annotations

from nemotron_convert.source.archive import Archive, read_bytes
from nemotron_convert.source.config_file import ModelSettings
from nemotron_core.errors import NemotronError
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
    try:
        pieces = SentencePieceModel.count_pieces(data)
    except NemotronError as error:
        raise NemotronError(error.what, where=where, remedy="copy it again") from error
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
