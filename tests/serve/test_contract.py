"""The wire contract: names, data types and shapes, as a running server states them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from nemotron_core.wire import TEXT_INPUTS, TEXT_OUTPUTS
from nemotron_serve.server import TritonServer
from tests.serve.wire import INPUTS, OUTPUTS, grpc_client


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "generate"])
def test_the_contract(model: str, server: TritonServer) -> None:
    with grpc_client(server) as client:
        metadata = client.get_model_metadata(model)
        config = client.get_model_config(model).config
    for tensors, expected in ((metadata.inputs, INPUTS), (metadata.outputs, OUTPUTS)):
        assert {t.name: (t.datatype, list(t.shape)) for t in tensors} == {
            name: (datatype, [-1, *dims]) for name, (datatype, dims) in expected.items()
        }
    assert all(entry.optional for entry in config.input)
    assert config.model_transaction_policy.decoupled == (model != "generate")


def test_the_page_has_the_contract() -> None:
    root = Path(__file__).parents[2]
    script = runpy.run_path(str(root / "scripts" / "contract_table.py"))
    assert script["tables"]() in (root / "docs" / "contract.md").read_text()
    names = {tensor.name for tensor in (*TEXT_INPUTS, *TEXT_OUTPUTS)}
    assert set(script["NOTES"]) <= names
