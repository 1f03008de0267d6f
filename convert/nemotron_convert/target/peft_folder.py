"""A LoRA as a folder of Hugging Face's PEFT, which transformers and vLLM load beside the base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nemotron_convert.safetensors_header import TensorSpec
from nemotron_convert.shards import HeadKind, take_heads
from nemotron_convert.source.adapter import Adapter
from nemotron_convert.source.adapter_map import DENSE, FC1, FC2, QKV
from nemotron_convert.source.lora_settings import LoraSettings
from nemotron_convert.source.merge_terms import LoraPart
from nemotron_convert.source.number_types import WeightType
from nemotron_convert.target.json_files import write_json
from nemotron_convert.target.manifest import AdapterEntry, Manifest
from nemotron_convert.target.tensor_file import TensorFile
from nemotron_core.errors import NemotronError
from nemotron_core.files import FileEntry, hash_file, sync
from nemotron_core.model_config import ModelConfig

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
HEADS = {
    HeadKind.QUERY: "self_attn.q_proj",
    HeadKind.KEY: "self_attn.k_proj",
    HeadKind.VALUE: "self_attn.v_proj",
}
"""Modules of the fused input projection, by kind of head."""
MODULES = {DENSE: "self_attn.o_proj", FC1: "mlp.up_proj", FC2: "mlp.down_proj"}
"""Modules of the other linear layers, by their source tensors."""


@dataclass(frozen=True)
class _Module:
    """One of PEFT's modules, made from the factors of a part."""

    name: str
    """Name below a layer."""
    part: LoraPart
    heads: HeadKind | None = None
    """The heads whose rows are taken out of B; without, all rows."""

    def tensor_names(self, layer: int) -> tuple[str, str]:
        """Return the names of A and B."""
        prefix = f"base_model.model.model.layers.{layer}.{self.name}.lora_"
        return f"{prefix}A.weight", f"{prefix}B.weight"

    def shapes(self, layer: int, config: ModelConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of A and B."""
        rows, rank = self.part.outputs[layer].shape
        if self.heads is not None:
            is_query = self.heads is HeadKind.QUERY
            rows = (config.num_heads if is_query else config.num_kv_heads) * config.head_size
        return self.part.inputs[layer].shape, (rows, rank)

    def factors(
        self, layer: int, config: ModelConfig
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return A and B."""
        a, b = self.part.factors(layer)
        if self.heads is not None:
            sizes = config.num_heads, config.num_kv_heads, config.head_size, b.shape[1]
            blocks = take_heads(self.heads, *sizes)
            b = np.concatenate([b[block.row : block.row + block.rows] for block in blocks])
        return a, b


def write_peft_folder(adapter: Adapter, folder: Path, base: str) -> Manifest:
    """Write a LoRA into an empty folder and return its manifest, which is written, too.

    The factors are BF16 if all are so in the adapter, and F32 otherwise. `base` names the base
    model. Raises `NemotronError` if the adapter has no LoRA or has more than PEFT can express.
    """
    modules = list(_modules(adapter))
    names = [module.name for module in modules]
    if adapter.lora is None or adapter.ia3_parts or len(set(names)) < len(names):
        raise NemotronError(
            "only a LoRA, one of each linear layer, or a P-tuning can be written in this format",
            where=adapter.contents.archive.path,
            remedy="merge it into its base model: leave out --format peft",
        )
    arrays = [
        array
        for part in adapter.lora_parts
        for side in (part.inputs, part.outputs)
        for array in side.values()
    ]
    is_bf16 = all(array.dtype is WeightType.BF16 for array in arrays)
    entry = _write_weights(folder / WEIGHTS_NAME, adapter, modules, is_bf16=is_bf16)
    write_json(folder / CONFIG_NAME, _config(adapter, adapter.lora, modules, base))
    sync(folder / CONFIG_NAME)
    manifest = Manifest(
        source=base,
        adapters=[AdapterEntry.of(adapter)],
        format="peft",
        dtype="bf16" if is_bf16 else "f32",
        tp=1,
        pp=1,
        source_dtypes=sorted({array.dtype.value for array in arrays}),
        files={CONFIG_NAME: hash_file(folder / CONFIG_NAME), WEIGHTS_NAME: entry},
    )
    manifest.write(folder)
    return manifest


def _modules(adapter: Adapter) -> Iterator[_Module]:
    for part in adapter.lora_parts:
        if part.module.weight != QKV:
            yield _Module(MODULES[part.module.weight], part)
        elif part.module.heads is not None:
            yield _Module(HEADS[part.module.heads], part)
        else:
            for kind, name in HEADS.items():
                yield _Module(name, part, kind)


def _write_weights(
    path: Path, adapter: Adapter, modules: list[_Module], *, is_bf16: bool
) -> FileEntry:
    """Write the factors layer by layer and return the file's size and hash."""
    places = [
        (layer, module)
        for layer in adapter.layers
        for module in modules
        if layer in module.part.inputs
    ]
    file = TensorFile(
        path,
        {
            name: TensorSpec("BF16" if is_bf16 else "F32", shape)
            for layer, module in places
            for name, shape in zip(
                module.tensor_names(layer), module.shapes(layer, adapter.base), strict=True
            )
        },
    )
    try:
        file.open()
        for layer, module in places:
            pair = module.factors(layer, adapter.base)
            for name, matrix in zip(module.tensor_names(layer), pair, strict=True):
                file.write(name, 0, 0, matrix.astype(ml_dtypes.bfloat16) if is_bf16 else matrix)
                file.finish(name)
        file.sync()
        return file.entry()
    finally:
        file.close()


def _config(
    adapter: Adapter, lora: LoraSettings, modules: list[_Module], base: str
) -> dict[str, object]:
    """Return PEFT's configuration, whose scale is `lora_alpha / r`.

    If the linear layers have factors in different layers, each module is named in full.
    """
    layers = adapter.layers
    is_uniform = all(sorted(module.part.inputs) == layers for module in modules)
    is_whole = len(layers) == adapter.base.num_layers
    selects_layers = is_uniform and not is_whole
    full_names = [
        f"model.layers.{layer}.{module.name}" for module in modules for layer in module.part.inputs
    ]
    short_names = [module.name.rpartition(".")[2] for module in modules]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.rank if lora.alpha is None else lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": short_names if is_uniform else full_names,
        "layers_to_transform": layers if selects_layers else None,
        "layers_pattern": "layers" if selects_layers else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
