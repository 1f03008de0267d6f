"""The configuration files of the Hugging Face format."""

from __future__ import annotations

from pathlib import Path

from nemotron_convert.target.json_files import write_json
from nemotron_convert.target.layout import Dtype, Precision
from nemotron_core.model_config import ModelConfig
from nemotron_core.reward import ATTRIBUTES
from nemotron_core.text.chat_format import CARD
from nemotron_core.text.sentencepiece_model import SentencePieceModel


def write_hf_configs(
    folder: Path,
    config: ModelConfig,
    vocab_size: int,
    tokenizer: SentencePieceModel,
    precision: Precision,
    *,
    is_reward: bool = False,
    end_piece: str = CARD.end_piece,
) -> None:
    """Write `config.json`, `generation_config.json` and, for FP8, `hf_quant_config.json`.

    `end_piece` is the control piece that ends an answer. For FP8, `config.json` has the same as
    `quantization_config`, where newer loaders look for it.
    """
    ids = {piece.text: i for i, piece in enumerate(tokenizer.pieces)}
    special = {
        "bos_token_id": ids.get("<s>"),
        "eos_token_id": ids.get("</s>"),
        "pad_token_id": ids.get("<pad>"),
    }
    end_ids = [ids[text] for text in (end_piece, "</s>") if text in ids]
    content = hf_config(config, vocab_size) | special
    if is_reward:
        content |= reward_config()
    if precision.weights is Dtype.FP8:
        content["quantization_config"] = quantization_config(precision)
    write_json(folder / "config.json", content)
    if not is_reward:
        write_json(folder / "generation_config.json", special | {"eos_token_id": end_ids})
    if precision.weights is Dtype.FP8:
        write_json(folder / "hf_quant_config.json", hf_quant_config(precision))


def hf_config(config: ModelConfig, vocab_size: int) -> dict[str, object]:
    """Return the keys of transformers' `NemotronConfig`.

    The type of the weights has its new key `dtype` and its old key `torch_dtype`, because
    TensorRT-LLM and vLLM read the old one.
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


def reward_config() -> dict[str, object]:
    """Return the keys that make the model transformers' `NemotronForSequenceClassification`."""
    labels = {str(number): name for number, name in enumerate(ATTRIBUTES)}
    return {
        "architectures": ["NemotronForSequenceClassification"],
        "kind": "reward",
        "problem_type": "regression",
        "id2label": labels,
        "label2id": {name: int(number) for number, name in labels.items()},
    }


NOT_QUANTIZED = ["lm_head", "model.embed_tokens"]
PRODUCER = {"name": "modelopt", "version": "0.47.0"}
"""vLLM accepts no other producer."""


def quantization_config(precision: Precision) -> dict[str, object]:
    """Return the entry of `config.json` as ModelOpt writes it."""
    numbers = {"dynamic": False, "num_bits": 8, "type": "float"}
    group = {"input_activations": numbers, "weights": numbers, "targets": ["Linear"]}
    config: dict[str, object] = {
        "config_groups": {"group_0": group},
        "ignore": NOT_QUANTIZED,
        "quant_algo": "FP8",
        "producer": PRODUCER,
        "quant_method": "modelopt",
    }
    if precision.kv_cache is Dtype.FP8:
        config["kv_cache_scheme"] = numbers
    return config


def hf_quant_config(precision: Precision) -> dict[str, object]:
    """Return the content of the file that ModelOpt writes beside `config.json`."""
    return {
        "producer": PRODUCER,
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8" if precision.kv_cache is Dtype.FP8 else None,
            "exclude_modules": NOT_QUANTIZED,
        },
    }
