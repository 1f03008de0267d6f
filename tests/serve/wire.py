"""Requests of a foreign client: NVIDIA's own tritonclient and urllib, without code of ours."""

from __future__ import annotations

import json
import math
import queue
import urllib.error
import urllib.request
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from nemotron_serve.server import TritonServer
from tests.tiny_nemotron.dialogues import Message
from tests.waiting import WAIT

# The tests' own tables, independent of the product's: copied from TensorRT-LLM's last classic
# ensemble, except the entries of ours. Shapes are without the batch axis.
INPUTS = {
    "text_input": ("BYTES", [1]),
    "messages": ("BYTES", [1]),  # ours
    "input_token_ids": ("INT32", [-1]),  # ours
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
    "num_input_tokens": ("INT32", [1]),
    "num_output_tokens": ("INT32", [1]),
    "sequence_index": ("INT32", [1]),
    "cum_log_probs": ("FP32", [-1]),
    "output_log_probs": ("FP32", [-1, -1]),
    "arrival_time_ns": ("INT64", [1]),
    "first_scheduled_time_ns": ("INT64", [1]),
    "first_token_time_ns": ("INT64", [1]),
    "last_token_time_ns": ("INT64", [1]),
}
ENGINE_INPUTS = {
    "stop": ("BOOL", [1]),
    "input_ids": ("INT32", [-1]),
    "input_lengths": ("INT32", [1]),
    "request_output_len": ("INT32", [1]),
}
"""Inputs of `tensorrt_llm` that the tests send."""
MODELS = ("ensemble", "tensorrt_llm_bls")
"""The two models that stream text."""
ASK = json.dumps([{"role": "user", "content": "Who are you?"}])
ENDLESS = {"text_input": "<extra_id_1>Go", "end_id": 0, "max_tokens": 4000, "stream": True}
STOP = {"stop": True, "input_ids": [1], "input_lengths": 1, "request_output_len": 1}
STOP_ATTEMPTS = 5
"""The longest answer lasts four seconds; on a machine that stalls, its stop may come too late."""


def messages_json(messages: Sequence[Message]) -> str:
    return json.dumps([message.as_dict() for message in messages], ensure_ascii=False)


def inputs(client: ModuleType, **fields: Any) -> list[Any]:
    """The fields as tensors of `client`, which is tritonclient's module for gRPC or HTTP."""
    tensors = []
    for name, value in fields.items():
        datatype, _shape = (INPUTS | ENGINE_INPUTS)[name]
        elements = value if isinstance(value, list) else [value]
        if datatype == "BYTES":
            elements = [e.encode() if isinstance(e, str) else e for e in elements]
        tensor = client.InferInput(name, [1, len(elements)], datatype)
        tensor.set_data_from_numpy(np.array([elements], triton_to_np_dtype(datatype)))
        tensors.append(tensor)
    return tensors


def grpc_client(server: TritonServer) -> Any:
    endpoints = server.endpoints
    return tritonclient.grpc.InferenceServerClient(f"{endpoints.address}:{endpoints.grpc}")


def stream(
    server: TritonServer, model: str = "ensemble", request_id: str = "", **fields: Any
) -> list[dict[str, Any]]:
    """Return all responses of a streamed request. Raises `InferenceServerException` if it fails."""
    results: queue.Queue[Any] = queue.Queue()
    with grpc_client(server) as client:
        client.start_stream(lambda result, error: results.put(error or result))
        client.async_stream_infer(
            model,
            inputs(tritonclient.grpc, **fields),
            request_id=request_id,
            enable_empty_final_response=True,
        )
        responses = []
        while True:
            result = results.get(timeout=WAIT)
            if isinstance(result, InferenceServerException):
                raise result
            response = result.get_response()
            if response.outputs:
                responses.append(
                    {output.name: result.as_numpy(output.name) for output in response.outputs}
                )
            if response.parameters["triton_final_response"].bool_param:
                return responses


def metric(server: TritonServer, name: str) -> float:
    """Return the value of a metric, or NaN until it is counted. `name` includes its labels."""
    endpoints = server.endpoints
    with urllib.request.urlopen(
        f"http://{endpoints.address}:{endpoints.metrics}/metrics"
    ) as response:
        lines = response.read().decode().splitlines()
    values = [float(line.split()[-1]) for line in lines if line.rsplit(" ", 1)[0] == name]
    assert len(values) < 2, values
    return values[0] if values else math.nan


def text(responses: Sequence[dict[str, Any]]) -> str:
    return "".join(r["text_output"].ravel()[0].decode() for r in responses)


def last(responses: Sequence[dict[str, Any]], name: str) -> Any:
    value = responses[-1][name].ravel()[0]
    return value.decode() if isinstance(value, bytes) else value


def post(server: TritonServer, path: str, body: object) -> tuple[int, bytes]:
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
