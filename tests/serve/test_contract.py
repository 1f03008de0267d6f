"""The wire contract: names, data types and shapes, as a running server states them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from nemotron_core.wire import TEXT_INPUTS, TEXT_OUTPUTS
from nemotron_serve.server import TritonServer
from tests.serve.wire import grpc_client

# Without the batch axis, copied from TensorRT-LLM's last classic ensemble but for the marked ones.
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


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "generate"])
def test_the_contract(model: str, server: TritonServer) -> None:
    with grpc_client(server) as client:
        found = client.get_model_metadata(model)
        config = client.get_model_config(model).config
    for tensors, expected in ((found.inputs, INPUTS), (found.outputs, OUTPUTS)):
        assert {t.name: (t.datatype, list(t.shape)) for t in tensors} == {
            name: (datatype, [-1, *dims]) for name, (datatype, dims) in expected.items()
        }
    assert all(entry.optional for entry in config.input)
    assert config.model_transaction_policy.decoupled == (model != "generate")


def test_the_page_has_the_contract() -> None:
    root = Path(__file__).parents[2]
    script = runpy.run_path(str(root / "scripts" / "contract_table.py"))
    assert script["tables"]() in (root / "docs" / "contract.md").read_text()
    known = {one.name for one in (*TEXT_INPUTS, *TEXT_OUTPUTS)}
    assert set(script["NOTES"]) <= known
