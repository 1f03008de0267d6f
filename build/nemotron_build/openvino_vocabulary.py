"""The vocabulary beside an OpenVINO engine, from which OpenVINO GenAI's guides know the tokens."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nemotron_core.openvino import openvino, opset13
from nemotron_core.text import Tokenizer

DECODER = "VocabDecoder"
"""Type of an operation, and the name by which OpenVINO GenAI finds it and reads its vocabulary."""
EXTENSION = "lib/libopenvino_tokenizers.so"


def save_vocabulary(tokenizer: Tokenizer, size: int, path: Path) -> None:
    """Write the detokenizer of a model whose vocabulary is padded to `size`: an .xml and a .bin.

    The tokens are those of `StreamingDetokenizer`, byte by byte. A token that is no text (control
    pieces, the unknown piece, padding) is empty, so that no guide ever allows it. Token 0 always
    is: by this token the engine knows a guide that allows nothing.
    """
    tokens = [b"", *(_token_bytes(tokenizer, id_) for id_ in range(1, size))]
    openvino.save_model(_detokenizer(tokens), path, compress_to_fp16=False)


def _token_bytes(tokenizer: Tokenizer, id_: int) -> bytes:
    if tokenizer.is_control(id_) or tokenizer.id_of(tokenizer.piece(id_)) is None:
        return b""
    text = tokenizer.token_text(id_)
    return bytes([text]) if isinstance(text, int) else text.encode()


def _detokenizer(tokens: list[bytes]) -> Any:
    """Return the `openvino.Model` that joins tokens: [B, T] i64 → [B] strings."""
    ends = np.cumsum([len(token) for token in tokens], dtype=np.int32)
    begins = np.concatenate([np.zeros(1, np.int32), ends[:-1]])
    characters = np.frombuffer(b"".join(tokens), np.uint8)
    ids = opset13.parameter(openvino.PartialShape([-1, -1]), openvino.Type.i64)
    extension = _extension()
    inputs = [opset13.convert(ids, "i32"), *map(opset13.constant, (begins, ends, characters))]
    decoder = extension.create(DECODER, [node.output(0) for node in inputs], {})
    decoder.set_friendly_name(DECODER)
    *spans, joined = decoder.outputs()
    spans = extension.create("FuzeRagged", spans, {}).outputs()
    text = openvino.utils.node_factory.NodeFactory("opset15").create(
        "StringTensorPack", [*spans, joined], {}
    )
    result = opset13.result(text)
    result.output(0).set_names({"string_output"})
    return openvino.Model([result], [ids], "detokenizer")


@lru_cache
def _extension() -> Any:
    """Return a factory of the operations of `openvino-tokenizers`, which openvino-genai brings.

    Its Python package, which patches OpenVINO when it is imported, is not. The factory must outlive
    every model with such an operation.
    """
    spec = importlib.util.find_spec("openvino_tokenizers")
    assert spec is not None and spec.origin is not None
    factory = openvino.utils.node_factory.NodeFactory()
    factory.add_extension(str(Path(spec.origin).parent / EXTENSION))
    return factory
