"""A `.nemo` folder of random weights, of any size and any chunk grid.

The weights are random bits with bounded exponents, so that every byte differs and nothing
compresses. The outputs of such a model are meaningless.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

LAYERS = "model.decoder.layers."


@dataclass(frozen=True)
class Shape:
    """Sizes of a Nemotron-4; `tp` is the tensor parallelism with which it was saved."""

    layers: int = 4
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 32000
    tp: int = 8
    mlp: int | None = None
    """Rows of the MLP; by default, four times `hidden`."""
    head_size: int | None = None
    """Channels of a head; by default, `hidden` over `heads`."""

    @property
    def ffn(self) -> int:
        return self.mlp or 4 * self.hidden

    @property
    def size(self) -> int:
        return self.head_size or self.hidden // self.heads

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape of each array by name, and the axis along which it is split (-1: not split)."""
        size, ffn, n = self.size, self.ffn, self.layers
        wide = self.heads * size
        qkv = (self.heads + 2 * self.kv_heads) * size
        return {
            "model.embedding.word_embeddings.weight": ((self.vocab, self.hidden), 0),
            LAYERS + "self_attention.linear_qkv.layer_norm_weight": ((n, self.hidden), -1),
            LAYERS + "self_attention.linear_qkv.layer_norm_bias": ((n, self.hidden), -1),
            LAYERS + "self_attention.linear_qkv.weight": ((n, qkv, self.hidden), 1),
            LAYERS + "self_attention.linear_proj.weight": ((n, self.hidden, wide), 2),
            LAYERS + "mlp.linear_fc1.layer_norm_weight": ((n, self.hidden), -1),
            LAYERS + "mlp.linear_fc1.layer_norm_bias": ((n, self.hidden), -1),
            LAYERS + "mlp.linear_fc1.weight": ((n, ffn, self.hidden), 1),
            LAYERS + "mlp.linear_fc2.weight": ((n, self.hidden, ffn), 2),
            "model.decoder.final_layernorm.weight": ((self.hidden,), -1),
            "model.decoder.final_layernorm.bias": ((self.hidden,), -1),
            "model.output_layer.weight": ((self.vocab, self.hidden), 0),
        }

    @property
    def nbytes(self) -> int:
        return 2 * sum(math.prod(shape) for shape, _ in self.arrays.values())


def random_tokenizer(pieces: int) -> bytes:
    """Return a serialized SentencePiece model, of the kind BPE, with numbers as pieces."""
    special = [(b"<pad>", 3), (b"<unk>", 2), (b"<s>", 3), (b"</s>", 3)]
    model = b""
    for i in range(pieces):
        text, kind = special[i] if i < len(special) else (b"%d" % i, 1)
        piece = b"\x0a%c" % len(text) + text + b"\x15" + struct.pack("<f", -i) + b"\x18%c" % kind
        model += b"\x0a%c" % len(piece) + piece
    return model + b"\x12\x02\x18\x02"


def write_nemo(
    folder: Path, shape: Shape, tokenizer: bytes | None = None, *, small: bool = False
) -> Path:
    """Write a zarr `.nemo` to `folder`, which must not exist, and return `folder`.

    Without `tokenizer` it gets one whose pieces are numbers. With `small`, the weights are about as
    large as a trained model's, so that an engine computes with ordinary numbers.
    """
    weights = folder / "model_weights"
    weights.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(tokenizer or random_tokenizer(shape.vocab))
    config = {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "kv_channels": shape.size,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.kv_heads,
        "max_position_embeddings": 4096,
        "encoder_seq_length": 4096,
        "layernorm_epsilon": 1e-5,
        "normalization": "layernorm1p",
        "activation": "squared-relu",
        "position_embedding_type": "rope",
        "rotary_percentage": 0.5,
        "bias": False,
        "share_embeddings_and_output_weights": False,
        "tokenizer": {"library": "sentencepiece", "model": "nemo:tokenizer.model"},
    }
    (folder / "model_config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (weights / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
    random = np.random.default_rng(1)
    for name, (size, axis) in shape.arrays.items():
        grid = list(size)
        if name.startswith(LAYERS):
            grid[0] = 1
        if axis >= 0:
            grid[axis] = size[axis] // shape.tp
        (weights / name).mkdir()
        meta = {"zarr_format": 2, "shape": size, "chunks": grid, "dtype": "bfloat16"}
        rest = {"order": "C", "compressor": None, "filters": None, "fill_value": None}
        (weights / name / ".zarray").write_text(json.dumps(meta | rest))
        for index in product(*(range(n // g) for n, g in zip(size, grid, strict=True))):
            with (weights / name / ".".join(map(str, index))).open("wb") as file:
                for part in _words(random, math.prod(grid), small):
                    part.tofile(file)
    return folder


def _words(random: np.random.Generator, count: int, small: bool) -> Iterator[np.ndarray]:
    """Yield BF16 words of absolute value 2^-16 to 1, or 2^-6 to 2^-5, a few MiB at a time."""
    keep, add = (0x807F, 0x3C80) if small else (0x87FF, 0x3800)
    step = 4 << 20
    for first in range(0, count, step):
        bits = random.integers(0, 1 << 16, min(step, count - first), np.uint16)
        yield (bits & keep) | add
