"""The wire contract: names, data types and shapes, as a running server states them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from nemotron_build.profile import Profile
from nemotron_core.wire import TEXT_INPUTS, TEXT_OUTPUTS
from nemotron_serve.model_server import ModelServer
from tests.serve.wire import (
    ENGINE_INPUTS,
    ENGINE_OUTPUTS,
    INPUTS,
    ONLY_TEXT_INPUTS,
    ONLY_TEXT_OUTPUTS,
    OUTPUTS,
    TEXT_MODELS,
    grpc_client,
)

Tensors = dict[str, tuple[str, list[int]]]
STEPS = {"prompt", "piece"}
"""Tensors of `tensorrt_llm` for the other steps of the ensemble."""


def check(
    model: str, server: ModelServer, profile: Profile, inputs: Tensors, outputs: Tensors
) -> Any:
    """Check what the server says of a model. Return the model's configuration."""
    with grpc_client(server) as client:
        metadata = client.get_model_metadata(model)
        config = client.get_model_config(model).config
    for tensors, expected in ((metadata.inputs, inputs), (metadata.outputs, outputs)):
        assert {t.name: (t.datatype, list(t.shape)) for t in tensors if t.name not in STEPS} == {
            name: (datatype, [-1, *dims]) for name, (datatype, dims) in expected.items()
        }
    assert all(entry.optional for entry in config.input)
    assert config.max_batch_size == profile.limits.max_batch_size
    return config


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_the_contract(model: str, server: ModelServer, served_profile: Profile) -> None:
    config = check(model, server, served_profile, INPUTS, OUTPUTS)
    assert config.model_transaction_policy.decoupled == (model != "generate")


def test_the_contract_of_the_engines_model(server: ModelServer, served_profile: Profile) -> None:
    inputs = {name: INPUTS[name] for name in INPUTS.keys() - ONLY_TEXT_INPUTS} | ENGINE_INPUTS
    outputs = {name: OUTPUTS[name] for name in OUTPUTS.keys() - ONLY_TEXT_OUTPUTS} | ENGINE_OUTPUTS
    config = check("tensorrt_llm", server, served_profile, inputs, outputs)
    assert config.model_transaction_policy.decoupled


def test_the_ensemble_is_three_steps_with_one_tensor_between_two(server: ModelServer) -> None:
    with grpc_client(server) as client:
        steps = client.get_model_config("ensemble").config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == [
        "preprocessing",
        "tensorrt_llm",
        "postprocessing",
    ]
    assert dict(steps[0].output_map) == {"prompt": "_prompt"}
    assert (dict(steps[1].input_map), dict(steps[1].output_map)) == (
        {"prompt": "_prompt"},
        {"piece": "_piece"},
    )
    assert dict(steps[2].input_map) == {"piece": "_piece"}


def test_no_model_makes_requests_inside_triton() -> None:
    root = Path(__file__).parents[2]
    sources = [*root.glob("model_repository/*/1/*.py"), *root.glob("engine/**/*.py")]
    assert len(sources) > 20
    assert not [path for path in sources if "InferenceRequest" in path.read_text()]


def test_the_page_has_the_contract() -> None:
    root = Path(__file__).parents[2]
    script = runpy.run_path(str(root / "scripts" / "contract_table.py"))
    assert script["tables"]() in (root / "docs" / "contract.md").read_text()
    names = {tensor.name for tensor in (*TEXT_INPUTS, *TEXT_OUTPUTS)}
    assert set(script["NOTES"]) <= names
