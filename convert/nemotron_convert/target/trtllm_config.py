"""The `config.json` of a TensorRT-LLM 1.2.x checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Dtype, Precision
from nemotron_core.model_config import ModelConfig

CONFIG_NAME = "config.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mapping(_Strict):
    """The split of the model over ranks."""

    world_size: int
    tp_size: int
    pp_size: int


class Quantization(_Strict):
    """The parts of the model that are quantized."""

    quant_algo: Literal["FP8"] | None = None
    kv_cache_quant_algo: Literal["FP8"] | None = None
    exclude_modules: list[str] | None = None


class TrtLlmConfig(_Strict):
    """Every key that TensorRT-LLM reads for this model. The constants are those of Nemotron-4.

    `apply_query_key_layer_scaling` must be false: the `.nemo` may have true, which Megatron ignores
    but TensorRT-LLM would apply. TensorRT-LLM's loader refuses unknown keys inside `mapping` and
    `quantization`.
    """

    architecture: Literal["GPTForCausalLM"] = "GPTForCausalLM"
    dtype: Literal["bfloat16"] = "bfloat16"
    logits_dtype: Literal["float32"] = "float32"
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    hidden_act: Literal["squared-relu"] = "squared-relu"
    norm_epsilon: float
    position_embedding_type: Literal["rope_gpt_neox"] = "rope_gpt_neox"
    rotary_pct: float
    rotary_base: float
    rotary_scaling: None = None
    bias: Literal[False] = False
    apply_query_key_layer_scaling: bool = False
    q_scaling: float = Field(default=1.0, ge=1.0, le=1.0)
    embedding_scale: None = None
    qk_layernorm: Literal[False] = False
    share_embedding_table: Literal[False] = False
    use_parallel_embedding: Literal[True] = True
    embedding_sharding_dim: Literal[0] = 0
    mapping: Mapping
    quantization: Quantization
    kind: Literal["reward"] | None = None
    """Whether scores come from `reward_head.safetensors`; `lm_head` then has no use. TensorRT-LLM
    does not read this key, and a model that generates text has none."""

    def to_json(self) -> str:
        """Return the content of `config.json`."""
        left_out = None if self.kind else {"kind"}
        return self.model_dump_json(indent=2, exclude=left_out) + "\n"

    @property
    def precision(self) -> Precision:
        """The parts of the model that are FP8."""
        quantization = self.quantization
        algorithms = (quantization.quant_algo, quantization.kv_cache_quant_algo)
        weights, kv_cache = (Dtype.FP8 if algorithm else Dtype.BF16 for algorithm in algorithms)
        return Precision(weights, kv_cache, exact_norms=self.kind == "reward")

    def model_shape(self) -> ModelConfig:
        """Return the model's configuration; its norm weights are gamma, not gamma - 1."""
        return ModelConfig(
            num_layers=self.num_hidden_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_size=self.head_size,
            max_positions=self.max_position_embeddings,
            norm_eps=self.norm_epsilon,
            rotary_pct=self.rotary_pct,
            rotary_base=self.rotary_base,
            gamma_is_centered=False,
            tokenizer_member="tokenizer.model",
        )


def trtllm_config(
    config: ModelConfig,
    vocab_size: int,
    parallel: Parallel,
    precision: Precision,
    *,
    is_reward: bool = False,
) -> TrtLlmConfig:
    """Return the `config.json` for a model, its split and its precision."""
    return TrtLlmConfig(
        kind="reward" if is_reward else None,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_size=config.head_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=vocab_size,
        max_position_embeddings=config.max_positions,
        norm_epsilon=config.norm_eps,
        rotary_pct=config.rotary_pct,
        rotary_base=config.rotary_base,
        mapping=Mapping(world_size=parallel.world_size, tp_size=parallel.tp, pp_size=parallel.pp),
        quantization=_quantization(precision),
    )


def _quantization(precision: Precision) -> Quantization:
    if precision.weights is not Dtype.FP8:
        return Quantization()
    return Quantization(
        quant_algo="FP8",
        kv_cache_quant_algo="FP8" if precision.kv_cache is Dtype.FP8 else None,
        exclude_modules=["lm_head"],
    )
