"""Shape and numerics of a Nemotron-4 model."""

from __future__ import annotations

from dataclasses import dataclass

TOKENIZER_NAME = "tokenizer.model"
"""Name of the SentencePiece model in every checkpoint and engine folder."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and numerics of a Nemotron-4 model; sizes in elements."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    max_positions: int
    norm_eps: float
    rotary_pct: float
    rotary_base: float
    gamma_is_centered: bool
    """Whether norm weights are stored without their +1 (LayerNorm1P)."""
    tokenizer_member: str
    """Name of the tokenizer's file in the `.nemo` archive."""

    @property
    def qkv_rows(self) -> int:
        """Number of rows of the fused query, key and value weight."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_size
