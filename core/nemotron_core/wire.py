"""The Triton contract as data: every input and output, its type and its shape.

Names, types and shapes are those of TensorRT-LLM's classic ensemble, so that its clients work.
What this project adds to them is marked as an extension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemotron_core.errors import NemotronError

Dtype = Literal["STRING", "INT32", "INT64", "UINT64", "UINT8", "FP16", "FP32", "BOOL"]


@dataclass(frozen=True)
class Tensor:
    """Name, type and shape of one input or output of a Triton model."""

    name: str
    dtype: Dtype
    """The type's name in Triton's model configurations, without `TYPE_`."""
    dims: tuple[int, ...] = (1,)
    """Shape without the batch axis; -1 stands for any size."""

    @property
    def datatype(self) -> str:
        """The type's name in requests and responses, where a string is `BYTES`."""
        return "BYTES" if self.dtype == "STRING" else self.dtype


@dataclass(frozen=True)
class Input(Tensor):
    """An input of a Triton model.

    Every input is optional for Triton. The model itself checks that a required input was sent.
    """

    feature: str = ""
    """What the engine must support; an engine without it accepts neutral values only."""
    neutral: tuple[Any, ...] = ()
    """Values that have no effect, which clients send nevertheless."""
    is_supported: bool = True
    """Whether any engine of this model has a use for it. If not, only neutral values pass."""
    is_extension: bool = False
    """Whether this project added the input to the classic contract."""

    def check(self, values: Sequence[Any], features: Sequence[str]) -> None:
        """Raise `NemotronError` if the values ask for something that the engine does not have."""
        if self.is_supported and (not self.feature or self.feature in features):
            return
        if all(value in self.neutral for value in values):
            return
        raise NemotronError(
            f"{self.name} is not on this engine", where=self.name, remedy="leave it out"
        )


def _unused(name: str, dtype: Dtype, dims: tuple[int, ...] = (1,), *neutral: Any) -> Input:
    return Input(name, dtype, dims, is_supported=False, neutral=neutral)


_SAMPLING = (
    Input("repetition_penalty", "FP32"),
    Input("min_tokens", "INT32"),
    Input("min_length", "INT32"),  # the name of `min_tokens` in older releases
    Input("presence_penalty", "FP32"),
    Input("frequency_penalty", "FP32"),
    Input("seed", "UINT64"),
    Input("random_seed", "UINT64"),  # the name of `seed` in older releases
    Input("temperature", "FP32"),
    Input("num_return_sequences", "INT32"),
    Input("end_id", "INT32"),
    Input("pad_id", "INT32"),
    Input("return_log_probs", "BOOL"),
    Input("return_perf_metrics", "BOOL"),
    Input("return_num_input_tokens", "BOOL"),
    Input("return_num_output_tokens", "BOOL"),
    Input("return_kv_cache_reuse_stats", "BOOL"),
    Input("exclude_input_in_output", "BOOL"),
    Input("guided_decoding_guide_type", "STRING", feature="guides", neutral=("",)),
    Input("guided_decoding_guide", "STRING", feature="guides", neutral=("",)),
    # The logits of one token of this vocabulary take a megabyte.
    _unused("return_context_logits", "BOOL", (1,), False),
    _unused("return_generation_logits", "BOOL", (1,), False),
    _unused("beam_width", "INT32", (1,), 1),  # beams cannot be streamed
    _unused("prompt_embedding_table", "FP16", (-1, -1)),
    _unused("prompt_table_extra_id", "UINT64"),
    _unused("prompt_vocab_size", "INT32"),
    Input("lora_name", "STRING", feature="lora", neutral=("",), is_extension=True),
    Input("lora_task_id", "UINT64", feature="lora"),
    _unused("lora_weights", "FP16", (-1, -1)),
    _unused("lora_config", "INT32", (-1, 3)),
)
"""Inputs that text models and `tensorrt_llm` have in common."""

TEXT_INPUTS = (
    Input("text_input", "STRING"),
    Input("messages", "STRING", is_extension=True),
    Input("add_generation_prompt", "BOOL", is_extension=True),
    Input("continue_final_message", "BOOL", is_extension=True),
    Input("input_token_ids", "INT32", (-1,), is_extension=True),
    _unused("decoder_text_input", "STRING", (1,), ""),  # this model has a decoder only
    Input("max_tokens", "INT32"),
    Input("bad_words", "STRING", (-1,), feature="bad_words", neutral=("",)),
    Input("stop_words", "STRING", (-1,)),
    Input("stop_token_ids", "INT32", (-1,), is_extension=True),
    Input("stream", "BOOL"),
    Input("top_k", "INT32"),
    Input("top_p", "FP32"),
    _unused("length_penalty", "FP32", (1,), 0.0, 1.0),
    Input("embedding_bias_words", "STRING", (-1,), feature="bias", neutral=("",)),
    Input("embedding_bias_weights", "FP32", (-1,), feature="bias", neutral=(0.0,)),
    Input("bias_token_ids", "INT32", (-1,), feature="bias", is_extension=True),
    Input("bias_values", "FP32", (-1,), feature="bias", neutral=(0.0,), is_extension=True),
    Input("num_top_log_probs", "INT32", feature="top_log_probs", neutral=(0,), is_extension=True),
    Input(
        "num_prompt_log_probs",
        "INT32",
        feature="prompt_log_probs",
        neutral=(-1,),
        is_extension=True,
    ),
    *_SAMPLING,
)
"""Inputs of `ensemble`, `tensorrt_llm_bls` and `generate`."""

PROMPT = Tensor("prompt", "UINT8", (-1,))
"""Output of `preprocessing`: everything that the other steps of the ensemble need."""
PIECE = Tensor("piece", "UINT8", (-1,))
"""Output of `tensorrt_llm` to `postprocessing`: a part of the answers to one request."""

TIME_OUTPUTS = (
    Tensor("arrival_time_ns", "INT64"),
    Tensor("first_scheduled_time_ns", "INT64"),
    Tensor("first_token_time_ns", "INT64"),
    Tensor("last_token_time_ns", "INT64"),
)
"""Times by the server's clock, sent with a sequence's last response if `return_perf_metrics`."""

LOG_PROB_OUTPUTS = (
    Tensor("cum_log_probs", "FP32", (-1,)),
    Tensor("output_log_probs", "FP32", (-1, -1)),
)
"""Outputs that are sent only if `return_log_probs`."""

TOP_OUTPUTS = (
    Tensor("top_token_ids", "INT32", (-1, -1)),
    Tensor("top_log_probs", "FP32", (-1, -1)),
)
"""Most probable tokens at each token of the answer, the best first: [tokens, num_top_log_probs]."""

PROMPT_OUTPUTS = (
    Tensor("prompt_top_token_ids", "INT32", (-1, -1)),
    Tensor("prompt_top_log_probs", "FP32", (-1, -1)),
)
"""The same at each token of the prompt, with the token itself in front: [prompt tokens, 1 +
num_prompt_log_probs]. Where there is no token, as at the first one, the id is -1."""

CACHE_OUTPUTS = (
    Tensor("kv_cache_alloc_new_blocks", "INT32"),
    Tensor("kv_cache_reused_blocks", "INT32"),
    Tensor("kv_cache_alloc_total_blocks", "INT32"),
)
"""Outputs that are sent only if `return_kv_cache_reuse_stats`; -1 means unknown."""

_ANSWER_OUTPUTS = (
    Tensor("finish_reason", "STRING"),  # extension
    Tensor("num_input_tokens", "INT32"),
    Tensor("num_output_tokens", "INT32"),
    Tensor("batch_index", "INT32"),
    Tensor("sequence_index", "INT32"),
    *LOG_PROB_OUTPUTS,
    *TIME_OUTPUTS,
    *CACHE_OUTPUTS,
)

TEXT_OUTPUTS = (
    Tensor("text_output", "STRING", (-1,)),
    Tensor("output_token_ids", "INT32", (-1,)),  # extension
    Tensor("stop_reason", "STRING"),  # extension
    *TOP_OUTPUTS,  # extension
    *PROMPT_OUTPUTS,  # extension
    *_ANSWER_OUTPUTS,
)
"""Outputs of `ensemble`, `tensorrt_llm_bls` and `generate`."""

ENGINE_INPUTS = (
    Input("input_ids", "INT32", (-1,)),
    Input("input_lengths", "INT32"),
    Input("request_output_len", "INT32"),
    Input("stop_words_list", "INT32", (2, -1)),
    Input("bad_words_list", "INT32", (2, -1), feature="bad_words", neutral=(0, -1)),  # no word
    Input("embedding_bias", "FP32", (-1,), feature="bias", neutral=(0.0,)),
    Input("streaming", "BOOL"),
    Input("stop", "BOOL"),
    Input("runtime_top_k", "INT32"),
    Input("runtime_top_p", "FP32"),
    _unused("len_penalty", "FP32", (1,), 0.0, 1.0),
    _unused("runtime_top_p_min", "FP32", (1,), 0.0, 9.999999974752427e-07),  # 1e-6 in FP32
    _unused("runtime_top_p_decay", "FP32", (1,), 0.0, 1.0),
    _unused("runtime_top_p_reset_ids", "INT32", (1,), -1, 0),
    _unused("draft_input_ids", "INT32", (-1,)),
    _unused("draft_logits", "FP32", (-1, -1)),
    _unused("draft_acceptance_threshold", "FP32", (1,), 0.0, 1.0),
    *_SAMPLING,
)
"""Inputs of `tensorrt_llm`."""

ENGINE_OUTPUTS = (
    Tensor("output_ids", "INT32", (-1, -1)),
    Tensor("sequence_length", "INT32", (-1,)),
    Tensor("acceptance_rate", "FP32"),
    *_ANSWER_OUTPUTS,
)
"""Outputs of `tensorrt_llm`."""

REWARD_INPUTS = (
    Input("messages", "STRING", is_extension=True),
    Input("turns", "STRING", is_extension=True),
)
"""Inputs of `reward`: a conversation, and whether all of the assistant's turns are scored."""

REWARD_OUTPUTS = (
    Tensor("scores", "FP32", (-1, 5)),
    Tensor("reward", "FP32", (-1,)),
    Tensor("num_input_tokens", "INT32", (-1,)),
)
"""Outputs of `reward`: one row for each scored turn."""

SENTENCE_INPUTS = (
    Input("sentences", "STRING", (-1,)),
    Input("tokens", "INT64", (-1,)),
    Input("sequence_lengths", "INT64", (-1,)),
    _unused("add_EOS", "BOOL", (-1,), False),  # the score belongs to the last token that is sent
)
"""Inputs of `reward_model`, which are those of NeMo's reward server."""

SENTENCE_OUTPUTS = (
    # NeMo declares one number, and sends one for each attribute.
    Tensor("rewards", "FP32", (-1,)),
    Tensor("exceeded", "INT32"),
)
"""Outputs of `reward_model`."""

DATATYPES = {
    tensor.name: tensor.datatype
    for tensor in (
        *TEXT_INPUTS,
        *TEXT_OUTPUTS,
        *ENGINE_INPUTS,
        *ENGINE_OUTPUTS,
        *REWARD_INPUTS,
        *REWARD_OUTPUTS,
        *SENTENCE_INPUTS,
        *SENTENCE_OUTPUTS,
        PROMPT,
        PIECE,
    )
}
"""Type of every tensor in requests and responses. A name has the same type in every model."""

STRUCT_FORMATS = {"INT32": "i", "INT64": "q", "UINT64": "Q", "FP32": "f", "BOOL": "?"}
"""Format in which `struct` packs one little-endian element; `BYTES` has a length in front."""
