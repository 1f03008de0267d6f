"""The file from which TensorRT-LLM's C++ backend guides decoding by a grammar."""

from __future__ import annotations

import json
from pathlib import Path

from nemotron_convert.target.hf_tokenizer import hf_tokenizer
from nemotron_core.text import Tokenizer
from nemotron_core.text.sentencepiece_model import SentencePieceModel

TOKENIZER_INFO_NAME = "xgrammar_tokenizer_info.json"


def write_tokenizer_info(tokenizer_model: Path, folder: Path) -> None:
    """Write `xgrammar_tokenizer_info.json`: all pieces by id, the tokenizer, the end token ids."""
    tokenizer = hf_tokenizer(SentencePieceModel.parse(tokenizer_model.read_bytes()))
    vocabulary = tokenizer.get_vocab()
    info = {
        "encoded_vocab": sorted(vocabulary, key=vocabulary.__getitem__),
        "tokenizer_str": tokenizer.to_str(),
        "stop_token_ids": list(Tokenizer(tokenizer_model).end_ids),
    }
    (folder / TOKENIZER_INFO_NAME).write_text(json.dumps(info), encoding="utf-8")
