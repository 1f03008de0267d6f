"""Requests as a foreign client writes them: NVIDIA's own tritonclient, urllib, no code of ours."""

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
from tritonclient.utils import InferenceServerException

from nemotron_serve.server import TritonServer
from tests.tiny_nemotron.dialogues import Message

DTYPES = {
    "text_input": ("BYTES", np.object_),
    "messages": ("BYTES", np.object_),
    "stop_words": ("BYTES", np.object_),
    "max_tokens": ("INT32", np.int32),
    "end_id": ("INT32", np.int32),
    "top_k": ("INT32", np.int32),
    "min_tokens": ("INT32", np.int32),
    "temperature": ("FP32", np.float32),
    "top_p": ("FP32", np.float32),
    "seed": ("UINT64", np.uint64),
    "stream": ("BOOL", np.bool_),
    "stop": ("BOOL", np.bool_),
    "exclude_input_in_output": ("BOOL", np.bool_),
    "return_num_input_tokens": ("BOOL", np.bool_),
    "bad_words": ("BYTES", np.object_),
    "num_return_sequences": ("INT32", np.int32),
    "return_perf_metrics": ("BOOL", np.bool_),
    "decoder_text_input": ("BYTES", np.object_),
    "length_penalty": ("FP32", np.float32),
    "return_context_logits": ("BOOL", np.bool_),
    "return_generation_logits": ("BOOL", np.bool_),
    "beam_width": ("INT32", np.int32),
    "prompt_table_extra_id": ("UINT64", np.uint64),
    "prompt_vocab_size": ("INT32", np.int32),
    "embedding_bias_words": ("BYTES", np.object_),
    "embedding_bias_weights": ("FP32", np.float32),
    "lora_task_id": ("UINT64", np.uint64),
    "guided_decoding_guide_type": ("BYTES", np.object_),
    "guided_decoding_guide": ("BYTES", np.object_),
    "pad_id": ("INT32", np.int32),
    "return_log_probs": ("BOOL", np.bool_),
    "input_ids": ("INT32", np.int32),
    "input_lengths": ("INT32", np.int32),
    "request_output_len": ("INT32", np.int32),
}
WAIT = 120
MODELS = ("ensemble", "tensorrt_llm_bls")
"""The two that stream text."""
ASK = json.dumps([{"role": "user", "content": "Who are you?"}])
ENDLESS = {"text_input": "<extra_id_1>Go", "end_id": 0, "max_tokens": 4000, "stream": True}
STOP = {"stop": True, "input_ids": [1], "input_lengths": 1, "request_output_len": 1}
STOP_ATTEMPTS = 5
"""The longest answer lasts four seconds; on a machine that stalls, its stop may come too late."""


def messages_json(messages: Sequence[Message]) -> str:
    return json.dumps([message.as_dict() for message in messages], ensure_ascii=False)


def inputs(client: ModuleType, **fields: Any) -> list[Any]:
    made = []
    for name, value in fields.items():
        datatype, dtype = DTYPES[name]
        elements = value if isinstance(value, list) else [value]
        if datatype == "BYTES":
            elements = [e.encode() if isinstance(e, str) else e for e in elements]
        tensor = client.InferInput(name, [1, len(elements)], datatype)
        tensor.set_data_from_numpy(np.array([elements], dtype))
        made.append(tensor)
    return made


def grpc_client(server: TritonServer) -> Any:
    ends = server.endpoints
    return tritonclient.grpc.InferenceServerClient(f"{ends.address}:{ends.grpc}")


def stream(
    server: TritonServer, model: str = "ensemble", request_id: str = "", **fields: Any
) -> list[dict[str, Any]]:
    """All responses of one streamed request; InferenceServerException if it fails."""
    found: queue.Queue[Any] = queue.Queue()
    with grpc_client(server) as client:
        client.start_stream(lambda result, error: found.put(error or result))
        client.async_stream_infer(
            model,
            inputs(tritonclient.grpc, **fields),
            request_id=request_id,
            enable_empty_final_response=True,
        )
        responses = []
        while True:
            result = found.get(timeout=WAIT)
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
    """The value of a metric; `name` with its labels, if it has any. NaN until it is counted."""
    ends = server.endpoints
    with urllib.request.urlopen(f"http://{ends.address}:{ends.metrics}/metrics") as response:
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
    """Status and body of an HTTP POST."""
    ends = server.endpoints
    request = urllib.request.Request(
        f"http://{ends.address}:{ends.http}{path}", data=json.dumps(body).encode(), method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
