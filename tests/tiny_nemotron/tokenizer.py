"""Trains the tiny model's SentencePiece model: the real model's layout with 1536 pieces.

As in Nemotron-4, text is not changed (no Unicode normalisation, no space removed or added), each
digit is a piece, and unknown characters become bytes. The corpus is fed line by line, so a newline
never becomes part of a piece; it is always the byte piece `<0x0A>`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import sentencepiece

VOCAB_SIZE = 1536
EXTRA_IDS = 10
# Fraction of the corpus whose characters become pieces. The other characters stay bytes, so that
# streams contain incomplete characters.
CHARACTER_COVERAGE = 0.985


def train_tokenizer(texts: Iterable[str]) -> bytes:
    """Train a SentencePiece model on `texts` and return it serialized, the same on every run.

    Ids: `<pad>` 0, `<unk>` 1, `<s>` 2, `</s>` 3, `<extra_id_0>` 4, `<extra_id_1>` 5, ….
    """
    lines = [line for text in texts for line in text.splitlines() if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        character_coverage=CHARACTER_COVERAGE,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        user_defined_symbols=[f"<extra_id_{i}>" for i in range(EXTRA_IDS)],
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
