"""The configuration of every Triton model, made from the contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf import text_format
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2 as pb

from nemotron_core.wire import (
    ENGINE_INPUTS,
    ENGINE_OUTPUTS,
    PROMPT_OUTPUTS,
    TEXT_INPUTS,
    TEXT_OUTPUTS,
    Tensor,
)

OF_THE_ENGINE = "_engine_"
"""Before what a step hands to the next, so that it is no input or output of the ensemble."""
OF_THE_PROMPT = "_"
ANSWER_SETTINGS = "answer_settings"


def to_text(config: Message) -> str:
    """As `config.pbtxt`."""
    return str(text_format.MessageToString(config))


def with_python_engine(
    prompt: Mapping[str, str], engine: Mapping[str, str]
) -> list[tuple[Message, str]]:
    """All models where `tensorrt_llm` is our own, with the folders of their code."""
    tokenizer = {"tokenizer_path": prompt["tokenizer_path"]}
    return [
        (ensemble(), ""),
        (preprocessing(prompt), "preprocessing"),
        (tensorrt_llm(engine), "tensorrt_llm"),
        (postprocessing(tokenizer), "postprocessing"),
        (generate(prompt), "generate"),
        (bls("tensorrt_llm_bls", prompt), "tensorrt_llm_bls"),
    ]


def around_a_foreign_engine(prompt: Mapping[str, str]) -> list[tuple[Message, str]]:
    """All other models where `tensorrt_llm` is the C++ backend.

    There `ensemble` is the BLS model too: Triton's own ensembles let no step see a stream together
    with what came before it, and this engine hands nothing on.
    """
    return [
        (bls("ensemble", prompt), "tensorrt_llm_bls"),
        (generate(prompt), "generate"),
        (bls("tensorrt_llm_bls", prompt), "tensorrt_llm_bls"),
    ]


def ensemble() -> pb.ModelConfig:
    """Preprocessing → tensorrt_llm → postprocessing."""
    config = _config("ensemble", TEXT_INPUTS, TEXT_OUTPUTS)
    config.platform = "ensemble"
    prompt = config.ensemble_scheduling.step.add(model_name="preprocessing", model_version=-1)
    _map(prompt.input_map, {one.name: one.name for one in TEXT_INPUTS})
    _map(prompt.output_map, {one.name: OF_THE_PROMPT + one.name for one in PROMPT_OUTPUTS})
    engine = config.ensemble_scheduling.step.add(model_name="tensorrt_llm", model_version=-1)
    _map(engine.input_map, {one.name: OF_THE_PROMPT + one.name for one in PROMPT_OUTPUTS})
    _map(engine.input_map, {one.engine: one.name for one in TEXT_INPUTS if one.engine})
    answer = config.ensemble_scheduling.step.add(model_name="postprocessing", model_version=-1)
    for one in ENGINE_OUTPUTS:
        if one.name != "sequence_length":
            engine.output_map[one.name] = OF_THE_ENGINE + one.name
            answer.input_map[one.name] = OF_THE_ENGINE + one.name
    _map(answer.output_map, {one.name: one.name for one in TEXT_OUTPUTS})
    return config


def preprocessing(parameters: Mapping[str, str]) -> pb.ModelConfig:
    """The first step."""
    return _python("preprocessing", TEXT_INPUTS, PROMPT_OUTPUTS, parameters)


def tensorrt_llm(parameters: Mapping[str, str]) -> pb.ModelConfig:
    """The engine as a Python model; its name, inputs and outputs are the C++ backend's."""
    config = _python("tensorrt_llm", ENGINE_INPUTS, ENGINE_OUTPUTS, parameters)
    config.model_transaction_policy.decoupled = True
    return config


def postprocessing(parameters: Mapping[str, str]) -> pb.ModelConfig:
    """The last step.

    Decoupled, for it answers less often than it is asked. One instance keeps the order. No dynamic
    batching: Triton would drop the tokens of a client that has gone from its queue and lose count
    of them for ever; so they reach the model, which stops the engine.
    """
    inputs = [one for one in ENGINE_OUTPUTS if one.name != "sequence_length"]
    config = _python("postprocessing", inputs, TEXT_OUTPUTS, parameters)
    config.model_transaction_policy.decoupled = True
    return config


def generate(parameters: Mapping[str, str]) -> pb.ModelConfig:
    """The ensemble in one response."""
    return _python("generate", TEXT_INPUTS, TEXT_OUTPUTS, parameters)


def bls(name: str, parameters: Mapping[str, str]) -> pb.ModelConfig:
    """The ensemble's twin, under any name."""
    config = _python(name, TEXT_INPUTS, TEXT_OUTPUTS, parameters)
    config.model_transaction_policy.decoupled = True
    return config


def _python(
    name: str,
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    parameters: Mapping[str, str],
) -> pb.ModelConfig:
    config = _config(name, inputs, outputs)
    config.backend = "python"
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def _config(name: str, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, max_batch_size=1)
    for one in inputs:
        # Triton only counts a request's inputs; which are missing, a model says itself.
        config.input.add(name=one.name, data_type=data_type(one), dims=one.dims, optional=True)
    for one in outputs:
        config.output.add(name=one.name, data_type=data_type(one), dims=one.dims)
    return config


def data_type(one: Tensor) -> int:
    """As Triton's configurations count types."""
    return int(pb.DataType.Value(f"TYPE_{one.dtype}"))


def _map(target: dict[str, str], names: Mapping[str, str]) -> None:
    for key, value in names.items():
        target[key] = value
