"""Adapters of the tiny model: hand-made ones, and others written in every layout, with torch only.

The hand-made LoRA in `tests/golden/custom` have factors that are integers times 2⁻⁶: every product
and sum is exact in F32, and the merged bits do not depend on the order of the sums.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch import Tensor

from tests.convert.nemo import GOLDEN
from tests.tiny_nemotron.nemo_file import NEMO as BASE
from tests.tiny_nemotron.nemo_file import read_members

CUSTOM = GOLDEN / "custom"
QKV, ALL, CANONICAL = (
    CUSTOM / f"lora_{name}.nemo" for name in ("qkv_tp1", "all_tp2", "canonical_tp1")
)
LAYERS = "model.decoder.layers."
LAYER_COUNT, HEADS, GROUPS, HEAD = 4, 16, 8, 16
Tensors = dict[str, Tensor]
"""An adapter's tensors, whole, by names that count layers over the whole model."""
IA3_KEY = "self_attention.adapter_layer.key_infused_adapter.scalers"
IA3_VALUE = "self_attention.adapter_layer.value_infused_adapter.scalers"
IA3_MLP = "mlp.adapter_layer.mlp_infused_adapter.scalers"
QKV_WEIGHT = LAYERS + "self_attention.linear_qkv.weight"
FC2_WEIGHT = LAYERS + "mlp.linear_fc2.weight"
NEMO2_NAMES = {
    "self_attention.adapter_layer.lora_kqv_adapter.": "self_attention.linear_qkv.adapter.",
    "self_attention.adapter_layer.lora_dense_attention_adapter.": (
        "self_attention.linear_proj.adapter."
    ),
    "mlp.adapter_layer.lora_hto4h_adapter.": "mlp.linear_fc1.adapter.",
    "mlp.adapter_layer.lora_4htoh_adapter.": "mlp.linear_fc2.adapter.",
    "self_attention.adapter_layer.lora_unfused_kqv_adapter.q_adapter.": (
        "self_attention.linear_qkv.adapter.adapter_q."
    ),
    "self_attention.adapter_layer.lora_unfused_kqv_adapter.k_adapter.": (
        "self_attention.linear_qkv.adapter.adapter_k."
    ),
    "self_attention.adapter_layer.lora_unfused_kqv_adapter.v_adapter.": (
        "self_attention.linear_qkv.adapter.adapter_v."
    ),
}


def read_adapter(path: Path) -> Tensors:
    """Return the tensors of a hand-made adapter, joined over its ranks."""
    states = [
        torch.load(io.BytesIO(data))
        for name, data in sorted(read_members(path).items())
        if name.endswith(".ckpt")
    ]
    return {name: torch.cat([s[name] for s in states], _axis(name)) for name in states[0]}


def read_config(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(read_members(path)["model_config.yaml"])
    assert isinstance(config, dict)
    return config


def _axis(name: str) -> int:
    """Return the axis along which ranks hold a tensor."""
    is_input = "linear_in" in name
    return 1 if is_input and ("dense_attention" in name or "4htoh" in name) else 0


def write_adapter(
    folder: Path,
    tensors: Tensors,
    config: Mapping[str, Any],
    *,
    tp: int = 1,
    pp: int = 1,
    prefix: str = "model.",
) -> Path:
    """Write an adapter as TP × PP ranks of NeMo 1 save it."""
    folder.mkdir(parents=True)
    members = read_members(BASE)
    tokenizer = next(name for name in members if name.endswith(".model"))
    (folder / tokenizer).write_bytes(members[tokenizer])
    (folder / "model_config.yaml").write_text(yaml.safe_dump(dict(config)))
    per_stage = LAYER_COUNT // pp
    for stage in range(pp):
        for rank in range(tp):
            state = {}
            for name, tensor in tensors.items():
                layer, _, rest = name.removeprefix(LAYERS).partition(".")
                if int(layer) // per_stage == stage:
                    local = f"{prefix}decoder.layers.{int(layer) % per_stage}.{rest}"
                    state[local] = tensor.chunk(tp, _axis(name))[rank].clone()
            place = folder
            if pp > 1:
                place = folder / f"tp_rank_{rank:02d}_pp_rank_{stage:03d}"
            elif tp > 1:
                place = folder / f"mp_rank_{rank:02d}"
            place.mkdir(exist_ok=True)
            torch.save(state, place / "model_weights.ckpt")
    return folder


def write_nemo2(
    folder: Path, tensors: Tensors, transform: Mapping[str, Any], *, stacked: bool = True
) -> Path:
    """Write a LoRA as NeMo 2 saves it: without a tokenizer, beside the name of its base model."""
    context = folder / "context"
    context.mkdir(parents=True)
    config = read_config(BASE)
    keys = ("num_layers", "hidden_size", "num_attention_heads", "num_query_groups")
    model = {
        "_target_": "nemo.collections.llm.gpt.model.nemotron.NemotronModel",
        "config": {
            **{key: config[key] for key in keys},
            "ffn_hidden_size": 4 * config["hidden_size"],
            "activation_func": "nemo.collections.llm.fn.activation.squared_relu",
            "add_bias_linear": False,
            "normalization": "LayerNorm",
            "layernorm_zero_centered_gamma": True,
            "position_embedding_type": "rope",
            "rotary_percent": config["rotary_percentage"],
            "seq_length": 4096,
            "share_embeddings_and_output_weights": False,
        },
        "model_transform": dict(transform),
    }
    (context / "model.yaml").write_text(yaml.safe_dump(model))
    by_name: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, rest = name.removeprefix(LAYERS).partition(".")
        for old, new in NEMO2_NAMES.items():
            rest = rest.replace(old, new)
        by_name.setdefault(rest, {})[int(layer)] = tensor
    state = {}
    for rest, layers in by_name.items():
        if stacked:
            state[f"module.decoder.layers.{rest}"] = torch.stack(
                [layers[i] for i in sorted(layers)]
            )
        else:
            state |= {f"module.decoder.layers.{i}.{rest}": tensor for i, tensor in layers.items()}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder / "weights"), no_dist=True)
    metadata = {"model_ckpt_path": "/models/nemotron4", "adapter_key_prefix": None}
    (folder / "weights" / "adapter_metadata.json").write_text(json.dumps(metadata))
    return folder


def ia3(seed: int = 5) -> Tensors:
    """Return random factors for the keys, the values and the MLP of all layers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{LAYERS}{layer}.{name}": 1 + 0.3 * torch.randn(size, generator=generator)
        for layer in range(LAYER_COUNT)
        for name, size in ((IA3_KEY, GROUPS * HEAD), (IA3_VALUE, GROUPS * HEAD), (IA3_MLP, 1024))
    }


def ia3_config() -> dict[str, Any]:
    return read_config(QKV) | {"peft": {"peft_scheme": "ia3", "ia3_tuning": {}}}


def group_rows(kind: int) -> Tensor:
    """Return the rows of the queries (0), keys (1) or values (2) in Megatron's fused matrix."""
    queries = HEADS // GROUPS
    rows = torch.arange((HEADS + 2 * GROUPS) * HEAD).view(GROUPS, queries + 2, HEAD)
    return (rows[:, :queries], rows[:, queries], rows[:, queries + 1])[kind].flatten()


def lora_changes(tensors: Tensors, scale: float) -> Tensors:
    """Return scale · B · A in F32 for each stack that a LoRA changes, [layers, rows, columns]."""
    weights = {
        "lora_kqv_adapter": QKV_WEIGHT,
        "lora_unfused_kqv_adapter": QKV_WEIGHT,
        "lora_dense_attention_adapter": LAYERS + "self_attention.linear_proj.weight",
        "lora_hto4h_adapter": LAYERS + "mlp.linear_fc1.weight",
        "lora_4htoh_adapter": FC2_WEIGHT,
    }
    shapes = {
        QKV_WEIGHT: (512, 256),
        LAYERS + "self_attention.linear_proj.weight": (256, 256),
        LAYERS + "mlp.linear_fc1.weight": (1024, 256),
        FC2_WEIGHT: (256, 1024),
    }
    changes: Tensors = {}
    for name, a in tensors.items():
        if not name.endswith("linear_in.weight"):
            continue
        b = tensors[name.replace("linear_in", "linear_out")]
        layer = int(name.removeprefix(LAYERS).partition(".")[0])
        weight = next(weight for part, weight in weights.items() if f".{part}." in name)
        change = changes.setdefault(weight, torch.zeros(LAYER_COUNT, *shapes[weight]))
        product = scale * (b.float() @ a.float())
        kinds = [kind for kind, letter in enumerate("qkv") if f".{letter}_adapter." in name]
        if kinds:
            change[layer, group_rows(kinds[0])] += product
        else:
            change[layer] += product
    return changes


def tar(folder: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, ".")
    return path


def selected(tensors: Tensors, layers: Sequence[int]) -> Tensors:
    """Return the tensors of some layers."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if int(name.removeprefix(LAYERS).partition(".")[0]) in layers
    }
