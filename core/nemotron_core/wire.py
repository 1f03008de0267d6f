"""The Triton contract as data: every input and output, its type, its shape and its lanes.

Names, types and shapes are those of TensorRT-LLM's classic ensemble, so that its clients work.
What this project adds to them is marked as an extension.
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

    lanes: tuple[Lane, ...] = LANES
    """Lanes whose engine supports this input. The others accept neutral values only."""
    neutral: tuple[Any, ...] = ()
    """Values that have no effect, which clients send nevertheless."""
    engine_name: str = ""
    """Name of the same input of `tensorrt_llm`, if it is passed on unchanged."""
    is_extension: bool = False
    """Whether this project added the input to the classic contract."""

    def refuse(self, lane: Lane, values: Sequence[Any]) -> None:
        """Raise `NemotronError` if the values ask for something that the lane does not support."""
        if lane in self.lanes or all(value in self.neutral for value in values):
            return
        alternatives = [other for other in LANES if other in self.lanes]
        raise NemotronError(
            f"{self.name} is not on the engine of the lane {lane}",
            where=self.name,
            remedy=f"leave it out, or use the lane {' or '.join(alternatives)}"
            if alternatives
            else "leave it out",
        )


GPU_LANES: tuple[Lane, ...] = ("tensorrt", "pytorch")
TENSORRT_LANE: tuple[Lane, ...] = ("tensorrt",)
NO_LANE: tuple[Lane, ...] = ()

TEXT_INPUTS = (
    Input("text_input", "STRING"),
    Input("messages", "STRING", is_extension=True),
    Input("input_token_ids", "INT32", (-1,), is_extension=True),
    # This model has a decoder only.
    Input("decoder_text_input", "STRING", lanes=NO_LANE, neutral=("",)),
    Input("max_tokens", "INT32"),
    Input("num_return_sequences", "INT32", engine_name="num_return_sequences"),
    Input("bad_words", "STRING", (-1,), lanes=TENSORRT_LANE, neutral=("",)),
    Input("stop_words", "STRING", (-1,)),
    Input("exclude_input_in_output", "BOOL"),
    Input("end_id", "INT32"),
    Input("pad_id", "INT32"),
    Input("top_k", "INT32", engine_name="runtime_top_k"),
    Input("top_p", "FP32", engine_name="runtime_top_p"),
    Input("temperature", "FP32", engine_name="temperature"),
    Input("length_penalty", "FP32", lanes=NO_LANE, neutral=(0.0, 1.0)),
    Input("repetition_penalty", "FP32", engine_name="repetition_penalty"),
    Input("min_tokens", "INT32", engine_name="min_tokens"),
    Input("presence_penalty", "FP32", engine_name="presence_penalty"),
    Input("frequency_penalty", "FP32", engine_name="frequency_penalty"),
    Input("seed", "UINT64", engine_name="seed"),
    Input("return_log_probs", "BOOL", engine_name="return_log_probs"),
    # The logits of one token of this vocabulary take a megabyte.
    Input("return_context_logits", "BOOL", lanes=NO_LANE, neutral=(False,)),
    Input("return_generation_logits", "BOOL", lanes=NO_LANE, neutral=(False,)),
    Input("return_perf_metrics", "BOOL", engine_name="return_perf_metrics"),
    Input("return_num_input_tokens", "BOOL"),
    Input("return_num_output_tokens", "BOOL"),
    Input("beam_width", "INT32", lanes=NO_LANE, neutral=(1,)),  # beams cannot be streamed
    Input("stream", "BOOL"),
    Input("prompt_embedding_table", "FP16", (-1, -1), lanes=NO_LANE),
    Input("prompt_table_extra_id", "UINT64", lanes=NO_LANE),
    Input("prompt_vocab_size", "INT32", lanes=NO_LANE),
    Input("embedding_bias_words", "STRING", (-1,), lanes=GPU_LANES, neutral=("",)),
    Input("embedding_bias_weights", "FP32", (-1,), lanes=GPU_LANES, neutral=(0.0,)),
    Input("lora_task_id", "UINT64", lanes=NO_LANE),
    Input("lora_weights", "FP16", (-1, -1), lanes=NO_LANE),
    Input("lora_config", "INT32", (-1, 3), lanes=NO_LANE),
    Input("guided_decoding_guide_type", "STRING", lanes=GPU_LANES, neutral=("",),
          engine_name="guided_decoding_guide_type"),
    Input("guided_decoding_guide", "STRING", lanes=GPU_LANES, neutral=("",),
          engine_name="guided_decoding_guide"),
)  # fmt: skip
"""Inputs of `ensemble`, `tensorrt_llm_bls` and `generate`."""

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

TEXT_OUTPUTS = (
    Tensor("text_output", "STRING", (-1,)),
    Tensor("output_token_ids", "INT32", (-1,)),  # extension
    Tensor("finish_reason", "STRING"),  # extension
    Tensor("stop_reason", "STRING"),  # extension
    Tensor("num_input_tokens", "INT32"),
    Tensor("num_output_tokens", "INT32"),
    Tensor("sequence_index", "INT32"),
    *LOG_PROB_OUTPUTS,
    *TIME_OUTPUTS,
)
"""Outputs of `ensemble`, `tensorrt_llm_bls` and `generate`."""

ENGINE_INPUTS = (
    Input("input_ids", "INT32", (-1,)),
    Input("input_lengths", "INT32"),
    Input("request_output_len", "INT32"),
    Input("end_id", "INT32"),
    Input("stop_words_list", "INT32", (2, -1)),
    Input("bad_words_list", "INT32", (2, -1), lanes=TENSORRT_LANE),
    Input("embedding_bias", "FP32", (-1,), lanes=GPU_LANES),
    Input("streaming", "BOOL"),
    Input("stop", "BOOL"),
    Input("stream_id", "STRING", is_extension=True),
    Input("answer_settings", "STRING", is_extension=True),
    *(
        Input(
            text_input.engine_name,
            text_input.dtype,
            text_input.dims,
            lanes=text_input.lanes,
            neutral=text_input.neutral,
        )
        for text_input in TEXT_INPUTS
        if text_input.engine_name
    ),
)
"""Inputs of `tensorrt_llm` where it is a Python model."""

ENGINE_OUTPUTS = (
    Tensor("output_ids", "INT32", (-1, -1)),
    Tensor("sequence_length", "INT32", (-1,)),
    Tensor("finish_reason", "STRING"),  # extension
    Tensor("answer_settings", "STRING"),  # extension
    Tensor("sequence_index", "INT32"),
    *LOG_PROB_OUTPUTS,
    *TIME_OUTPUTS,
)
"""Outputs of `tensorrt_llm` where it is a Python model."""

FOREIGN_ENGINE_INPUTS = (
    *(engine_input for engine_input in ENGINE_INPUTS if not engine_input.is_extension),
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
"""Inputs of `tensorrt_llm` where it is TensorRT-LLM's C++ backend."""

FOREIGN_ENGINE_OUTPUTS = (
    Tensor("output_ids", "INT32", (-1, -1)),
    Tensor("sequence_length", "INT32", (-1,)),
    Tensor("sequence_index", "INT32"),
    *LOG_PROB_OUTPUTS,
    *TIME_OUTPUTS,
    Tensor("num_input_tokens", "INT32"),
    Tensor("num_output_tokens", "INT32"),
    Tensor("kv_cache_alloc_new_blocks", "INT32"),
    Tensor("kv_cache_reused_blocks", "INT32"),
    Tensor("kv_cache_alloc_total_blocks", "INT32"),
)
"""Outputs of `tensorrt_llm` where it is TensorRT-LLM's C++ backend."""

PROMPT_OUTPUTS: tuple[Tensor, ...] = tuple(
    engine_input
    for engine_input in ENGINE_INPUTS
    if engine_input.name not in {"stop", *(text_input.engine_name for text_input in TEXT_INPUTS)}
)
"""Outputs of `preprocessing`: the engine's inputs that are neither passed on nor `stop`."""

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
"""Type of every tensor in requests and responses. A name has the same type in every model."""

STRUCT_FORMATS = {"INT32": "i", "INT64": "q", "UINT64": "Q", "FP32": "f", "BOOL": "?"}
"""Format in which `struct` packs one little-endian element; `BYTES` has a length in front."""
