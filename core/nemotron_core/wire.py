"""What crosses Triton's wire: every input and output, its type, its shape, and who has it.

Names, types and shapes are those of TensorRT-LLM's classic ensemble, so that its clients work; what
that one lacks is marked as ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemotron_core.errors import NemotronError

Lane = Literal["cpu", "tensorrt", "pytorch"]
LANES: tuple[Lane, ...] = ("cpu", "tensorrt", "pytorch")
Dtype = Literal["STRING", "INT32", "INT64", "UINT64", "FP16", "FP32", "BOOL"]


@dataclass(frozen=True)
class Tensor:
    """`dims` are without the batch axis; -1 is any size."""

    name: str
    dtype: Dtype
    """As Triton's configurations name it."""
    dims: tuple[int, ...] = (1,)

    @property
    def datatype(self) -> str:
        """The type's name in requests and responses, where a string is `BYTES`."""
        return "BYTES" if self.dtype == "STRING" else self.dtype


@dataclass(frozen=True)
class Input(Tensor):
    """An input, which Triton takes for optional: a model says itself what it misses."""

    lanes: tuple[Lane, ...] = LANES
    """Which engines can do it; the others refuse any value but a neutral one."""
    neutral: tuple[Any, ...] = ()
    """What changes nothing, and clients send anyway."""
    engine: str = ""
    """What the model `tensorrt_llm` calls it, if it gets it as it is."""
    ours: bool = False

    def refuse(self, lane: Lane, values: Sequence[Any]) -> None:
        """NemotronError if these values ask for what the lane cannot do."""
        if lane in self.lanes or all(value in self.neutral for value in values):
            return
        others = [other for other in LANES if other in self.lanes]
        raise NemotronError(
            f"{self.name} is not on the engine of the lane {lane}",
            where=self.name,
            remedy=f"leave it out, or use the lane {' or '.join(others)}"
            if others
            else "leave it out",
        )


GPU: tuple[Lane, ...] = ("tensorrt", "pytorch")
TENSORRT: tuple[Lane, ...] = ("tensorrt",)
NONE: tuple[Lane, ...] = ()

TEXT_INPUTS = (
    Input("text_input", "STRING"),
    Input("messages", "STRING", ours=True),
    Input("input_token_ids", "INT32", (-1,), ours=True),
    Input("decoder_text_input", "STRING", lanes=NONE, neutral=("",)),  # of encoder-decoders
    Input("max_tokens", "INT32"),
    Input("num_return_sequences", "INT32", engine="num_return_sequences"),
    Input("bad_words", "STRING", (-1,), lanes=TENSORRT, neutral=("",)),
    Input("stop_words", "STRING", (-1,)),
    Input("exclude_input_in_output", "BOOL"),
    Input("end_id", "INT32"),
    Input("pad_id", "INT32"),
    Input("top_k", "INT32", engine="runtime_top_k"),
    Input("top_p", "FP32", engine="runtime_top_p"),
    Input("temperature", "FP32", engine="temperature"),
    Input("length_penalty", "FP32", lanes=NONE, neutral=(0.0, 1.0)),
    Input("repetition_penalty", "FP32", engine="repetition_penalty"),
    Input("min_tokens", "INT32", engine="min_tokens"),
    Input("presence_penalty", "FP32", engine="presence_penalty"),
    Input("frequency_penalty", "FP32", engine="frequency_penalty"),
    Input("seed", "UINT64", engine="seed"),
    Input("return_log_probs", "BOOL", engine="return_log_probs"),
    # A megabyte for each token of this vocabulary.
    Input("return_context_logits", "BOOL", lanes=NONE, neutral=(False,)),
    Input("return_generation_logits", "BOOL", lanes=NONE, neutral=(False,)),
    Input("return_perf_metrics", "BOOL", engine="return_perf_metrics"),
    Input("return_num_input_tokens", "BOOL"),
    Input("return_num_output_tokens", "BOOL"),
    Input("beam_width", "INT32", lanes=NONE, neutral=(1,)),  # beams cannot be streamed
    Input("stream", "BOOL"),
    Input("prompt_embedding_table", "FP16", (-1, -1), lanes=NONE),
    Input("prompt_table_extra_id", "UINT64", lanes=NONE),
    Input("prompt_vocab_size", "INT32", lanes=NONE),
    Input("embedding_bias_words", "STRING", (-1,), lanes=GPU, neutral=("",)),
    Input("embedding_bias_weights", "FP32", (-1,), lanes=GPU, neutral=(0.0,)),
    Input("lora_task_id", "UINT64", lanes=NONE),
    Input("lora_weights", "FP16", (-1, -1), lanes=NONE),
    Input("lora_config", "INT32", (-1, 3), lanes=NONE),
    Input("guided_decoding_guide_type", "STRING", lanes=GPU, neutral=("",),
          engine="guided_decoding_guide_type"),
    Input("guided_decoding_guide", "STRING", lanes=GPU, neutral=("",),
          engine="guided_decoding_guide"),
)  # fmt: skip
"""Of `ensemble`, `tensorrt_llm_bls` and `generate`."""

TIMES = (
    Tensor("arrival_time_ns", "INT64"),
    Tensor("first_scheduled_time_ns", "INT64"),
    Tensor("first_token_time_ns", "INT64"),
    Tensor("last_token_time_ns", "INT64"),
)
"""With the last response, if `return_perf_metrics` asks for them; the clock is of the server."""

LOG_PROBS = (
    Tensor("cum_log_probs", "FP32", (-1,)),
    Tensor("output_log_probs", "FP32", (-1, -1)),
)
TEXT_OUTPUTS = (
    Tensor("text_output", "STRING", (-1,)),
    Tensor("output_token_ids", "INT32", (-1,)),  # ours
    Tensor("finish_reason", "STRING"),  # ours
    Tensor("stop_reason", "STRING"),  # ours
    Tensor("num_input_tokens", "INT32"),
    Tensor("num_output_tokens", "INT32"),
    Tensor("sequence_index", "INT32"),
    *LOG_PROBS,
    *TIMES,
)

ENGINE_INPUTS = (
    Input("input_ids", "INT32", (-1,)),
    Input("input_lengths", "INT32"),
    Input("request_output_len", "INT32"),
    Input("end_id", "INT32"),
    Input("stop_words_list", "INT32", (2, -1)),
    Input("bad_words_list", "INT32", (2, -1), lanes=TENSORRT),
    Input("embedding_bias", "FP32", (-1,), lanes=GPU),
    Input("streaming", "BOOL"),
    Input("stop", "BOOL"),
    Input("stream_id", "STRING", ours=True),
    Input("answer_settings", "STRING", ours=True),
    *(
        Input(one.engine, one.dtype, one.dims, lanes=one.lanes, neutral=one.neutral)
        for one in TEXT_INPUTS
        if one.engine
    ),
)
"""Of `tensorrt_llm` where it is a Python model."""

ENGINE_OUTPUTS = (
    Tensor("output_ids", "INT32", (-1, -1)),
    Tensor("sequence_length", "INT32", (-1,)),
    Tensor("finish_reason", "STRING"),  # ours
    Tensor("answer_settings", "STRING"),  # ours
    Tensor("sequence_index", "INT32"),
    *LOG_PROBS,
    *TIMES,
)

FOREIGN_ENGINE_INPUTS = (
    *(one for one in ENGINE_INPUTS if not one.ours),
    Input("pad_id", "INT32"),
    Input("beam_width", "INT32"),
    Input("len_penalty", "FP32"),
    Input("runtime_top_p_min", "FP32"),
    Input("runtime_top_p_decay", "FP32"),
    Input("runtime_top_p_reset_ids", "INT32"),
    Input("exclude_input_in_output", "BOOL"),
    Input("return_num_input_tokens", "BOOL"),
    Input("return_num_output_tokens", "BOOL"),
)
"""Of `tensorrt_llm` where it is TensorRT-LLM's C++ backend."""

FOREIGN_ENGINE_OUTPUTS = (
    Tensor("output_ids", "INT32", (-1, -1)),
    Tensor("sequence_length", "INT32", (-1,)),
    Tensor("sequence_index", "INT32"),
    *LOG_PROBS,
    *TIMES,
    Tensor("num_input_tokens", "INT32"),
    Tensor("num_output_tokens", "INT32"),
    Tensor("kv_cache_alloc_new_blocks", "INT32"),
    Tensor("kv_cache_reused_blocks", "INT32"),
    Tensor("kv_cache_alloc_total_blocks", "INT32"),
)

PROMPT_OUTPUTS = (
    Tensor("input_ids", "INT32", (-1,)),
    Tensor("input_lengths", "INT32"),
    Tensor("request_output_len", "INT32"),
    Tensor("end_id", "INT32"),
    Tensor("stop_words_list", "INT32", (2, -1)),
    Tensor("bad_words_list", "INT32", (2, -1)),
    Tensor("embedding_bias", "FP32", (-1,)),
    Tensor("streaming", "BOOL"),
    Tensor("stream_id", "STRING"),
    Tensor("answer_settings", "STRING"),
)
"""Of `preprocessing`: what `tensorrt_llm` gets beside the inputs it takes as they are."""

DATATYPES = {
    tensor.name: tensor.datatype
    for tensor in (
        *TEXT_INPUTS,
        *TEXT_OUTPUTS,
        *ENGINE_INPUTS,
        *ENGINE_OUTPUTS,
        *FOREIGN_ENGINE_INPUTS,
        *FOREIGN_ENGINE_OUTPUTS,
    )
}
"""Every tensor's type in requests and responses; a name has the same type in every model."""

STRUCT_FORMATS = {"INT32": "i", "INT64": "q", "UINT64": "Q", "FP32": "f", "BOOL": "?"}
"""How `struct` writes one element of a type, little-endian; `BYTES` has a length before it."""
