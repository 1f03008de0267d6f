"""A P-tuning as a folder of Hugging Face's PEFT, where it is a prompt tuning: vectors, no MLP."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import save

from nemotron_convert.source.adapter import Adapter
from nemotron_convert.target.json_files import write_json
from nemotron_convert.target.manifest import AdapterEntry, Manifest
from nemotron_convert.target.peft_folder import CONFIG_NAME, WEIGHTS_NAME
from nemotron_core.files import hash_file, sync


def write_prompt_folder(adapter: Adapter, folder: Path, base: str) -> Manifest:
    """Write a P-tuning's vectors in F32 into an empty folder and return its manifest.

    The manifest is written, too. `base` names the base model.
    """
    assert adapter.prompt is not None
    vectors = adapter.prompt.vectors
    (folder / WEIGHTS_NAME).write_bytes(save({"prompt_embeddings": vectors}))
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "num_virtual_tokens": len(vectors),
        "token_dim": adapter.base.hidden_size,
        "num_layers": adapter.base.num_layers,
        "num_attention_heads": adapter.base.num_heads,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }
    write_json(folder / CONFIG_NAME, config)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        sync(folder / name)
    manifest = Manifest(
        source=base,
        adapters=[AdapterEntry.of(adapter)],
        virtual_tokens=len(vectors),
        format="peft",
        dtype="f32",
        tp=1,
        pp=1,
        source_dtypes=["F32"],
        files={name: hash_file(folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME)},
    )
    manifest.write(folder)
    return manifest
