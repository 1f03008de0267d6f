"""Reader and writer of SentencePiece models: pieces, algorithm and normalizer.

The library reports pieces and scores, but not the algorithm and the normalizer, and its protobuf
module needs a certain protobuf release. So the few fields that are needed here are read from the
wire format (https://protobuf.dev/programming-guides/encoding/), by their numbers in
`sentencepiece_model.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from nemotron_core.errors import NemotronError

PIECES, TRAINER_SPEC, NORMALIZER_SPEC = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
TRAINER_ALGORITHM, TRAINER_BYTE_FALLBACK = 3, 35
SPECIAL_PIECES = {"<unk>": (40, 45), "<s>": (41, 46), "</s>": (42, 47), "<pad>": (43, 48)}
"""The trainer's fields for the id and the text of the pieces with a meaning of their own."""
ABSENT = -1
CHARSMAP, DUMMY_PREFIX, EXTRA_WHITESPACES, ESCAPE_WHITESPACES = 2, 3, 4, 5


class PieceType(IntEnum):
    """Type of a piece, with the numbers of `sentencepiece_model.proto`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Algorithm(IntEnum):
    """Algorithm that cuts a text into pieces."""

    UNIGRAM = 1
    BPE = 2


@dataclass(frozen=True)
class Piece:
    """One piece of the vocabulary; its score orders merges or is a log-probability."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class SentencePieceModel:
    """The pieces by id, and the parameters of tokenization."""

    pieces: tuple[Piece, ...]
    algorithm: Algorithm
    byte_fallback: bool
    charsmap: bytes
    """The compiled normalization rules; empty if there are none."""
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool

    @classmethod
    def parse(cls, data: bytes) -> SentencePieceModel:
        """Parse a model. Raises `NemotronError` if it is malformed or of an unknown algorithm."""
        try:
            return cls._parse(data)
        except (ValueError, IndexError, struct.error, TypeError, AttributeError) as error:
            raise NemotronError(f"not a SentencePiece model of a known kind: {error}") from error

    @staticmethod
    def count_pieces(data: bytes) -> int:
        """Return the number of pieces of a model, without parsing them.

        Raises `NemotronError` if it is malformed.
        """
        try:
            count = sum(number == PIECES for number, _ in _fields(data))
        except (ValueError, IndexError) as error:
            raise NemotronError(f"not a SentencePiece model: {error}") from error
        if not count:
            raise NemotronError("not a SentencePiece model: it has no pieces")
        return count

    @classmethod
    def _parse(cls, data: bytes) -> SentencePieceModel:
        pieces = []
        trainer: dict[int, bytes | int] = {}
        normalizer: dict[int, bytes | int] = {}
        for number, value in _fields(data):
            if number == PIECES:
                pieces.append(_piece(_bytes(value)))
            elif number == TRAINER_SPEC:
                trainer |= dict(_fields(_bytes(value)))
            elif number == NORMALIZER_SPEC:
                normalizer |= dict(_fields(_bytes(value)))
        if not pieces:
            raise ValueError("it has no pieces")
        return cls(
            tuple(pieces),
            Algorithm(_int(trainer.get(TRAINER_ALGORITHM, Algorithm.UNIGRAM))),
            bool(trainer.get(TRAINER_BYTE_FALLBACK, 0)),
            _bytes(normalizer.get(CHARSMAP, b"")),
            bool(normalizer.get(DUMMY_PREFIX, 1)),
            bool(normalizer.get(EXTRA_WHITESPACES, 1)),
            bool(normalizer.get(ESCAPE_WHITESPACES, 1)),
        )


def serialize(model: SentencePieceModel) -> bytes:
    """Return a model in the form that `SentencePieceModel.parse` and the library read."""
    pieces = b"".join(
        _field(
            PIECES,
            _field(PIECE_TEXT, piece.text.encode())
            + _key(PIECE_SCORE, 5)
            + struct.pack("<f", piece.score)
            + _field(PIECE_TYPE, piece.type),
        )
        for piece in model.pieces
    )
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    unknown = next((p.text for p in model.pieces if p.type is PieceType.UNKNOWN), "<unk>")
    trainer = _field(TRAINER_ALGORITHM, model.algorithm)
    trainer += _field(TRAINER_BYTE_FALLBACK, int(model.byte_fallback))
    for text, (id_field, text_field) in SPECIAL_PIECES.items():
        name = unknown if text == "<unk>" else text
        trainer += _field(id_field, ids.get(name, ABSENT)) + _field(text_field, name.encode())
    normalizer = _field(CHARSMAP, model.charsmap) if model.charsmap else b""
    for number, value in (
        (DUMMY_PREFIX, model.add_dummy_prefix),
        (EXTRA_WHITESPACES, model.remove_extra_whitespaces),
        (ESCAPE_WHITESPACES, model.escape_whitespaces),
    ):
        normalizer += _field(number, int(value))
    return pieces + _field(TRAINER_SPEC, trainer) + _field(NORMALIZER_SPEC, normalizer)


def _field(number: int, value: bytes | int) -> bytes:
    """Return a field: bytes with their length, or an integer as a varint."""
    if isinstance(value, bytes):
        return _key(number, 2) + _encoded(len(value)) + value
    return _key(number, 0) + _encoded(value % (1 << 64))


def _key(number: int, wire: int) -> bytes:
    return _encoded(number << 3 | wire)


def _encoded(value: int) -> bytes:
    """Return a number as a varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    score = struct.unpack("<f", _bytes(fields.get(PIECE_SCORE, b"\0\0\0\0")))[0]
    kind = PieceType(_int(fields.get(PIECE_TYPE, PieceType.NORMAL)))
    return Piece(_bytes(fields[PIECE_TEXT]).decode(), score, kind)


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where bytes should")
    return value


def _int(value: bytes | int) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes stand where a number should")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield (number, value) of each field: an int for a varint, bytes for other types."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("it ends early")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("an endless number")
