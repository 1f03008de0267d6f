"""The tensors of adapters and the linear layers that they change, as data.

A LoRA of a matrix W [out, in] is two factors: A [rank, in], called linear_in, and B [out, rank],
called linear_out. An IA3 is a vector that multiplies the outputs or the inputs of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nemotron_convert.shards import HeadKind
from nemotron_convert.tensor_map import LAYERS, Place, Split, TensorRule
from nemotron_core.model_config import ModelConfig

QKV = LAYERS + "self_attention.linear_qkv.weight"
DENSE = LAYERS + "self_attention.linear_proj.weight"
FC1 = LAYERS + "mlp.linear_fc1.weight"
FC2 = LAYERS + "mlp.linear_fc2.weight"


def sizes(config: ModelConfig) -> dict[str, int]:
    """Return the sizes that the tables name, in elements."""
    return {
        "hidden": config.hidden_size,
        "ffn": config.intermediate_size,
        "heads": config.num_heads * config.head_size,
        "kv": config.num_kv_heads * config.head_size,
        "qkv": config.qkv_rows,
    }


@dataclass(frozen=True)
class LoraModule:
    """The LoRA of a linear layer, or of the rows of one kind of heads in it."""

    target: str
    """Name of the linear layer in `target_modules`."""
    weight: str
    """The source tensor that is changed."""
    name: str
    """Beginning of the factors' names, below a layer."""
    rows: str
    """Name of the number of rows of B."""
    columns: str
    """Name of the number of columns of A."""
    heads: HeadKind | None = None
    """The heads whose rows are changed; without, all rows."""

    @property
    def rules(self) -> tuple[TensorRule, TensorRule]:
        """The rules of A and B. On tensor-parallel ranks, A is split as the matrix's inputs are."""
        is_split_by_columns = self.weight in (DENSE, FC2)
        split = Split.COLUMNS if is_split_by_columns else Split.ROWS
        return (
            _rule(f"{self.name}.linear_in.weight", ("rank", self.columns), split),
            _rule(f"{self.name}.linear_out.weight", (self.rows, "rank"), Split.ROWS),
        )


def _rule(name: str, shape: tuple[str, ...], split: Split) -> TensorRule:
    return TensorRule(LAYERS + name, "", shape, split, Place.EVERY_LAYER)


_ATTENTION = "self_attention.adapter_layer."
_UNFUSED = _ATTENTION + "lora_unfused_kqv_adapter."
_QKV2 = "self_attention.linear_qkv.adapter"
LORA_MODULES = (
    LoraModule("attention_qkv", QKV, _ATTENTION + "lora_kqv_adapter", "qkv", "hidden"),
    LoraModule("attention_qkv", QKV, _UNFUSED + "q_adapter", "heads", "hidden", HeadKind.QUERY),
    LoraModule("attention_qkv", QKV, _UNFUSED + "k_adapter", "kv", "hidden", HeadKind.KEY),
    LoraModule("attention_qkv", QKV, _UNFUSED + "v_adapter", "kv", "hidden", HeadKind.VALUE),
    LoraModule(
        "attention_dense", DENSE, _ATTENTION + "lora_dense_attention_adapter", "hidden", "heads"
    ),
    LoraModule("mlp_fc1", FC1, "mlp.adapter_layer.lora_hto4h_adapter", "ffn", "hidden"),
    LoraModule("mlp_fc2", FC2, "mlp.adapter_layer.lora_4htoh_adapter", "hidden", "ffn"),
    LoraModule("linear_qkv", QKV, _QKV2, "qkv", "hidden"),
    LoraModule("linear_qkv", QKV, _QKV2 + ".adapter_q", "heads", "hidden", HeadKind.QUERY),
    LoraModule("linear_qkv", QKV, _QKV2 + ".adapter_k", "kv", "hidden", HeadKind.KEY),
    LoraModule("linear_qkv", QKV, _QKV2 + ".adapter_v", "kv", "hidden", HeadKind.VALUE),
    LoraModule("linear_proj", DENSE, "self_attention.linear_proj.adapter", "hidden", "heads"),
    LoraModule("linear_fc1", FC1, "mlp.linear_fc1.adapter", "ffn", "hidden"),
    LoraModule("linear_fc2", FC2, "mlp.linear_fc2.adapter", "hidden", "ffn"),
)
"""All of them: those of NeMo 1, then those of NeMo 2."""

TARGET_GROUPS = {
    "attention": ("attention_qkv", "attention_dense"),
    "mlp": ("mlp_fc1", "mlp_fc2"),
    "all": ("attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"),
}
"""Names in `target_modules` that stand for several linear layers."""


class Axis(Enum):
    """The side of a matrix that an IA3 multiplies."""

    ROWS = "outputs"
    COLUMNS = "inputs"


@dataclass(frozen=True)
class Ia3Module:
    """The IA3 of the rows of one kind of heads, or of the columns of a matrix."""

    weight: str
    name: str
    """Name of the vector, below a layer."""
    size: str
    """Name of the number of its elements."""
    axis: Axis
    heads: HeadKind | None = None

    @property
    def rule(self) -> TensorRule:
        return _rule(f"{self.name}.scalers", (self.size,), Split.COLUMNS)


IA3_MODULES = (
    Ia3Module(QKV, _ATTENTION + "key_infused_adapter", "kv", Axis.ROWS, HeadKind.KEY),
    Ia3Module(QKV, _ATTENTION + "value_infused_adapter", "kv", Axis.ROWS, HeadKind.VALUE),
    Ia3Module(FC2, "mlp.adapter_layer.mlp_infused_adapter", "ffn", Axis.COLUMNS),
)
"""All of them. The keys are multiplied before the rotation, the MLP after its activation."""
