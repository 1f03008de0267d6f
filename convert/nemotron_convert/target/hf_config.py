"""`config.json`, `generation_config.json` and `hf_quant_config.json` of the Hugging Face format."""

from __future__ import annotations

import json
from pathlib import Path

from nemotron_convert.target.layout import Dtype, Precision
from nemotron_core.model_config import ModelConfig
from nemotron_core.text.sentencepiece_model import SentencePieceModel

END_OF_TURN = "<extra_id_1>"


def write_hf_configs(
    folder: Path,
    config: ModelConfig,
    vocab_size: int,
    tokenizer: SentencePieceModel,
    precision: Precision,
) -> None:
    """Write both files, and `hf_quant_config.json` for FP8."""
    ids = {piece.text: i for i, piece in enumerate(tokenizer.pieces)}
    special = {
        "bos_token_id": ids.get("<s>"),
        "eos_token_id": ids.get("</s>"),
        "pad_token_id": ids.get("<pad>"),
    }
    ends = [ids[text] for text in (END_OF_TURN, "</s>") if text in ids]
    _write(folder / "config.json", hf_config(config, vocab_size) | special)
    _write(folder / "generation_config.json", special | {"eos_token_id": ends})
    if precision.weights is Dtype.FP8:
        _write(folder / "hf_quant_config.json", hf_quant_config(precision))


def hf_config(config: ModelConfig, vocab_size: int) -> dict[str, object]:
    """The keys of transformers' `NemotronConfig`.

    The type of the weights is there under its old and its new name, for TensorRT-LLM and vLLM read
    the old one.
    """
    return {
        "architectures": ["NemotronForCausalLM"],
        "model_type": "nemotron",
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_positions,
        "hidden_act": "relu2",
        "norm_eps": config.norm_eps,
        "partial_rotary_factor": config.rotary_pct,
        "rope_theta": config.rotary_base,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def hf_quant_config(precision: Precision) -> dict[str, object]:
    """As ModelOpt writes it; vLLM reads no other producer's."""
    return {
        "producer": {"name": "modelopt", "version": "0.47.0"},
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8" if precision.kv_cache is Dtype.FP8 else None,
            "exclude_modules": ["lm_head", "model.embed_tokens"],
        },
    }


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
