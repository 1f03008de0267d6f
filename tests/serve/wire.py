"""Requests of a foreign client: NVIDIA's own tritonclient and urllib, without code of ours."""

from __future__ import annotations

import json
import math
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from nemotron_serve.model_server import ModelServer
from tests.tiny_nemotron.dialogues import Message
from tests.waiting import WAIT

# The tests' own tables, independent of the product's: copied from TensorRT-LLM's last classic
# ensemble, except the entries of ours. Shapes are without the batch axis.
INPUTS = {
    "text_input": ("BYTES", [1]),
    "messages": ("BYTES", [1]),  # ours
    "input_token_ids": ("INT32", [-1]),  # ours
    "add_generation_prompt": ("BOOL", [1]),  # ours
    "continue_final_message": ("BOOL", [1]),  # ours
    "stop_token_ids": ("INT32", [-1]),  # ours
    "bias_token_ids": ("INT32", [-1]),  # ours
    "bias_values": ("FP32", [-1]),  # ours
    "num_top_log_probs": ("INT32", [1]),  # ours
    "num_prompt_log_probs": ("INT32", [1]),  # ours
    "decoder_text_input": ("BYTES", [1]),
    "max_tokens": ("INT32", [1]),
    "num_return_sequences": ("INT32", [1]),
    "bad_words": ("BYTES", [-1]),
    "stop_words": ("BYTES", [-1]),
    "exclude_input_in_output": ("BOOL", [1]),
    "end_id": ("INT32", [1]),
    "pad_id": ("INT32", [1]),
    "top_k": ("INT32", [1]),
    "top_p": ("FP32", [1]),
    "temperature": ("FP32", [1]),
    "length_penalty": ("FP32", [1]),
    "repetition_penalty": ("FP32", [1]),
    "min_tokens": ("INT32", [1]),
    "presence_penalty": ("FP32", [1]),
    "frequency_penalty": ("FP32", [1]),
    "seed": ("UINT64", [1]),
    "random_seed": ("UINT64", [1]),
    "min_length": ("INT32", [1]),
    "return_kv_cache_reuse_stats": ("BOOL", [1]),
    "return_log_probs": ("BOOL", [1]),
    "return_context_logits": ("BOOL", [1]),
    "return_generation_logits": ("BOOL", [1]),
    "return_perf_metrics": ("BOOL", [1]),
    "return_num_input_tokens": ("BOOL", [1]),
    "return_num_output_tokens": ("BOOL", [1]),
    "beam_width": ("INT32", [1]),
    "stream": ("BOOL", [1]),
    "prompt_embedding_table": ("FP16", [-1, -1]),
    "prompt_table_extra_id": ("UINT64", [1]),
    "prompt_vocab_size": ("INT32", [1]),
    "embedding_bias_words": ("BYTES", [-1]),
    "embedding_bias_weights": ("FP32", [-1]),
    "lora_name": ("BYTES", [1]),  # ours
    "lora_task_id": ("UINT64", [1]),
    "lora_weights": ("FP16", [-1, -1]),
    "lora_config": ("INT32", [-1, 3]),
    "guided_decoding_guide_type": ("BYTES", [1]),
    "guided_decoding_guide": ("BYTES", [1]),
}
OUTPUTS = {
    "text_output": ("BYTES", [-1]),
    "output_token_ids": ("INT32", [-1]),  # ours
    "finish_reason": ("BYTES", [1]),  # ours
    "stop_reason": ("BYTES", [1]),  # ours
    "top_token_ids": ("INT32", [-1, -1]),  # ours
    "top_log_probs": ("FP32", [-1, -1]),  # ours
    "prompt_top_token_ids": ("INT32", [-1, -1]),  # ours
    "prompt_top_log_probs": ("FP32", [-1, -1]),  # ours
    "num_input_tokens": ("INT32", [1]),
    "num_output_tokens": ("INT32", [1]),
    "batch_index": ("INT32", [1]),
    "sequence_index": ("INT32", [1]),
    "cum_log_probs": ("FP32", [-1]),
    "output_log_probs": ("FP32", [-1, -1]),
    "arrival_time_ns": ("INT64", [1]),
    "first_scheduled_time_ns": ("INT64", [1]),
    "first_token_time_ns": ("INT64", [1]),
    "last_token_time_ns": ("INT64", [1]),
    "kv_cache_alloc_new_blocks": ("INT32", [1]),
    "kv_cache_reused_blocks": ("INT32", [1]),
    "kv_cache_alloc_total_blocks": ("INT32", [1]),
}
ENGINE_INPUTS = {
    "input_ids": ("INT32", [-1]),
    "input_lengths": ("INT32", [1]),
    "request_output_len": ("INT32", [1]),
    "stop_words_list": ("INT32", [2, -1]),
    "bad_words_list": ("INT32", [2, -1]),
    "embedding_bias": ("FP32", [-1]),
    "streaming": ("BOOL", [1]),
    "stop": ("BOOL", [1]),
    "runtime_top_k": ("INT32", [1]),
    "runtime_top_p": ("FP32", [1]),
    "len_penalty": ("FP32", [1]),
    "runtime_top_p_min": ("FP32", [1]),
    "runtime_top_p_decay": ("FP32", [1]),
    "runtime_top_p_reset_ids": ("INT32", [1]),
    "draft_input_ids": ("INT32", [-1]),
    "draft_logits": ("FP32", [-1, -1]),
    "draft_acceptance_threshold": ("FP32", [1]),
}
"""Inputs of `tensorrt_llm` that text models do not have."""
ONLY_TEXT_INPUTS = {
    *("text_input", "messages", "input_token_ids", "decoder_text_input", "max_tokens"),
    *("bad_words", "stop_words", "stream", "top_k", "top_p", "length_penalty"),
    *("embedding_bias_words", "embedding_bias_weights", "bias_token_ids", "bias_values"),
    *("add_generation_prompt", "continue_final_message", "stop_token_ids"),
    *("num_top_log_probs", "num_prompt_log_probs"),
}
ENGINE_OUTPUTS = {
    "output_ids": ("INT32", [-1, -1]),
    "sequence_length": ("INT32", [-1]),
    "acceptance_rate": ("FP32", [1]),
}
"""Outputs of `tensorrt_llm` in place of the text models' first ones."""
ONLY_TEXT_OUTPUTS = {
    *("text_output", "output_token_ids", "stop_reason", "top_token_ids", "top_log_probs"),
    *("prompt_top_token_ids", "prompt_top_log_probs"),
}
MODELS = ("ensemble", "tensorrt_llm_bls")
"""The two models that stream text."""
TEXT_MODELS = (*MODELS, "generate")
ASK = json.dumps([{"role": "user", "content": "Who are you?"}])
ENDLESS_TOKENS = {
    "input_ids": [5, 300],
    "input_lengths": 2,
    "request_output_len": 4000,
    "end_id": -1,
    "streaming": True,
}
ENDLESS = {"text_input": "<extra_id_1>Go", "end_id": 0, "max_tokens": 4000, "stream": True}
STOP = {"stop": True, "input_ids": [1], "input_lengths": 1, "request_output_len": 1}
STOP_ATTEMPTS = 5
"""The longest answer lasts four seconds; on a machine that stalls, its stop may come too late."""


def messages_json(messages: Sequence[Message]) -> str:
    return json.dumps([message.as_dict() for message in messages], ensure_ascii=False)


def inputs(client: ModuleType, **fields: Any) -> list[Any]:
    """The fields as tensors of `client`, which is tritonclient's module for gRPC or HTTP.

    A value is one element, a list of the elements of a request with one prompt, or an array.
    """
    tensors = []
    for name, value in fields.items():
        datatype, _shape = (INPUTS | ENGINE_INPUTS)[name]
        elements = value if isinstance(value, list) else [value]
        if datatype == "BYTES" and not isinstance(value, np.ndarray):
            elements = [e.encode() if isinstance(e, str) else e for e in elements]
        dtype = triton_to_np_dtype(datatype)
        array = value if isinstance(value, np.ndarray) else np.array([elements], dtype)
        tensor = client.InferInput(name, array.shape, datatype)
        tensor.set_data_from_numpy(array.astype(dtype))
        tensors.append(tensor)
    return tensors


def grpc_client(server: ModelServer) -> Any:
    endpoints = server.endpoints
    return tritonclient.grpc.InferenceServerClient(f"{endpoints.address}:{endpoints.grpc}")


@dataclass(frozen=True)
class Sent:
    """What a request over gRPC has besides its inputs."""

    request_id: str = ""
    parameters: dict[str, Any] | None = None
    timeout: int | None = None
    """Triton's own time limit in microseconds."""


def stream(
    server: ModelServer,
    model: str = "ensemble",
    request_id: str = "",
    sent: Sent | None = None,
    **fields: Any,
) -> list[dict[str, Any]]:
    """Return all responses of a streamed request. Raises `InferenceServerException` if it fails."""
    sent = sent or Sent(request_id)
    results: queue.Queue[Any] = queue.Queue()
    with grpc_client(server) as client:
        client.start_stream(lambda result, error: results.put(error or result))
        client.async_stream_infer(
            model,
            inputs(tritonclient.grpc, **fields),
            request_id=sent.request_id,
            parameters=sent.parameters,
            timeout=sent.timeout,
            enable_empty_final_response=True,
        )
        responses = []
        while True:
            result = results.get(timeout=WAIT)
            if isinstance(result, InferenceServerException):
                raise result
            response = result.get_response()
            if response.outputs:
                responses.append(as_arrays(result))
            if response.parameters["triton_final_response"].bool_param:
                return responses


class Running:
    """A streamed request on a connection of its own, as a context manager that cancels it."""

    def __init__(
        self, server: ModelServer, model: str, sent: Sent | None = None, **fields: Any
    ) -> None:
        sent = sent or Sent()
        self.responses: list[dict[str, Any]] = []
        self.times: list[float] = []
        """Seconds of `time.monotonic()` of each response."""
        self.error: InferenceServerException | None = None
        self.began, self.ended = threading.Event(), threading.Event()
        self._client = grpc_client(server)
        self._client.start_stream(self._collect)
        self._client.async_stream_infer(
            model,
            inputs(tritonclient.grpc, **fields),
            request_id=sent.request_id,
            parameters=sent.parameters,
            timeout=sent.timeout,
            enable_empty_final_response=True,
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.stop_stream(cancel_requests=True)
        self._client.close()

    def begin(self) -> None:
        """Wait for the first response."""
        assert self.began.wait(WAIT)

    def end(self) -> list[dict[str, Any]]:
        """Wait for the last response. Raises `InferenceServerException` if the request fails."""
        assert self.ended.wait(WAIT)
        if self.error is not None:
            raise self.error
        return self.responses

    def _collect(self, result: Any, error: InferenceServerException | None) -> None:
        self.error = error
        is_last = error is not None
        if result is not None:
            response = result.get_response()
            is_last = response.parameters["triton_final_response"].bool_param
            if response.outputs:
                self.responses.append(as_arrays(result))
                self.times.append(time.monotonic())
        self.began.set()
        if is_last:
            self.ended.set()


def infer(
    server: ModelServer, model: str = "generate", sent: Sent | None = None, **fields: Any
) -> dict[str, Any]:
    """Return the response to plain inference over gRPC."""
    sent = sent or Sent()
    with grpc_client(server) as client:
        result = client.infer(
            model,
            inputs(tritonclient.grpc, **fields),
            request_id=sent.request_id,
            parameters=sent.parameters,
            timeout=sent.timeout,
        )
    return as_arrays(result)


def whole(
    server: ModelServer, model: str, sent: Sent | None = None, **fields: Any
) -> dict[str, Any]:
    """Return the only response to an unstreamed request."""
    if model == "generate":
        return infer(server, model, sent, **fields)
    (response,) = stream(server, model, sent=sent, **fields)
    return response


def as_arrays(result: Any) -> dict[str, Any]:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def metric(server: ModelServer, name: str) -> float:
    """Return the value of a metric, or NaN until it is counted. `name` includes its labels."""
    endpoints = server.endpoints
    with urllib.request.urlopen(
        f"http://{endpoints.address}:{endpoints.metrics}/metrics"
    ) as response:
        lines = response.read().decode().splitlines()
    values = [float(line.split()[-1]) for line in lines if line.rsplit(" ", 1)[0] == name]
    assert len(values) < 2, values
    return values[0] if values else math.nan


def running(server: ModelServer) -> int:
    """Return how many requests the engine itself has."""
    while (count := server.engine.running()) is None:
        """It does not say in the middle of a long step."""
    return count


def text(responses: Sequence[dict[str, Any]]) -> str:
    return "".join(r["text_output"].ravel()[0].decode() for r in responses)


def last(responses: Sequence[dict[str, Any]], name: str) -> Any:
    value = responses[-1][name].ravel()[0]
    return value.decode() if isinstance(value, bytes) else value


def post(server: ModelServer, path: str, body: object) -> tuple[int, bytes]:
    """Send an HTTP POST. Return its status and body."""
    endpoints = server.endpoints
    request = urllib.request.Request(
        f"http://{endpoints.address}:{endpoints.http}{path}",
        data=json.dumps(body).encode(),
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
