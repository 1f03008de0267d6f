"""The wire contract: names, data types and shapes, as a running server states them."""

from __future__ import annotations

import pytest

from nemotron_build.server import TritonServer
from tests.serve.wire import grpc_client

# Without the batch axis. All but the marked ones are the classic TensorRT-LLM ensemble's.
INPUTS = {
    "text_input": ("BYTES", [1]),
    "messages": ("BYTES", [1]),  # ours
    "max_tokens": ("INT32", [1]),
    "stop_words": ("BYTES", [-1]),
    "end_id": ("INT32", [1]),
    "pad_id": ("INT32", [1]),
    "stream": ("BOOL", [1]),
    "exclude_input_in_output": ("BOOL", [1]),
    "top_k": ("INT32", [1]),
    "top_p": ("FP32", [1]),
    "temperature": ("FP32", [1]),
    "repetition_penalty": ("FP32", [1]),
    "presence_penalty": ("FP32", [1]),
    "frequency_penalty": ("FP32", [1]),
    "min_tokens": ("INT32", [1]),
    "seed": ("UINT64", [1]),
    "return_log_probs": ("BOOL", [1]),
    "return_num_input_tokens": ("BOOL", [1]),
    "return_num_output_tokens": ("BOOL", [1]),
}
OUTPUTS = {
    "text_output": ("BYTES", [-1]),
    "output_token_ids": ("INT32", [-1]),  # ours
    "finish_reason": ("BYTES", [1]),  # ours
    "stop_reason": ("BYTES", [1]),  # ours
    "num_input_tokens": ("INT32", [1]),
    "num_output_tokens": ("INT32", [1]),
    "cum_log_probs": ("FP32", [-1]),
    "output_log_probs": ("FP32", [-1, -1]),
}


@pytest.mark.parametrize("model", ["ensemble", "generate"])
def test_the_contract(model: str, server: TritonServer) -> None:
    with grpc_client(server) as client:
        found = client.get_model_metadata(model)
        config = client.get_model_config(model).config
    for tensors, expected in ((found.inputs, INPUTS), (found.outputs, OUTPUTS)):
        assert {t.name: (t.datatype, list(t.shape)) for t in tensors} == {
            name: (datatype, [-1, *dims]) for name, (datatype, dims) in expected.items()
        }
    assert all(entry.optional for entry in config.input)
    assert config.model_transaction_policy.decoupled == (model == "ensemble")
