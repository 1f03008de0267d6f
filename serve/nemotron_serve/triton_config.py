"""The configuration of every Triton model, rendered from the contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf import text_format
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2 as pb

from nemotron_core.reward import ModelKind
from nemotron_core.wire import (
    ENGINE_INPUTS,
    ENGINE_OUTPUTS,
    PIECE,
    PROMPT,
    REWARD_INPUTS,
    REWARD_OUTPUTS,
    SENTENCE_INPUTS,
    SENTENCE_OUTPUTS,
    TEXT_INPUTS,
    TEXT_OUTPUTS,
    Tensor,
)

REFUSING = ("ensemble", "tensorrt_llm_bls")
"""Text models that stream, which a reward engine has only to refuse requests."""
STEP_PREFIX = "_"
"""Prefix of tensors between two steps, which are no inputs or outputs of the ensemble."""


def to_text(config: Message) -> str:
    """Return a configuration as the text of a `config.pbtxt`."""
    return str(text_format.MessageToString(config))


def model_configs(
    parameters: Mapping[str, str], max_batch_size: int, kind: ModelKind
) -> list[pb.ModelConfig]:
    """Return the configuration of each Triton model for an engine of a kind.

    All models of Python have the same parameters. `max_batch_size` is the number of prompts that
    one request may have.
    """
    configs = _text_models() if kind == "text" else _reward_models()
    for config in configs:
        config.max_batch_size = max_batch_size
        if config.name == "ensemble" and kind == "text":
            _add_steps(config)
            continue
        config.backend = "python"
        # One instance, for which Triton reserves no GPU. It keeps a stream in order.
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
        for key, value in parameters.items():
            config.parameters[key].string_value = value
    return configs


def _text_models() -> list[pb.ModelConfig]:
    return [
        _config("ensemble", TEXT_INPUTS, TEXT_OUTPUTS),
        _config("preprocessing", TEXT_INPUTS, [PROMPT]),
        _decoupled(_config("tensorrt_llm", [*ENGINE_INPUTS, PROMPT], [*ENGINE_OUTPUTS, PIECE])),
        # Not decoupled and not batched: exactly one response for each piece. With a batcher, Triton
        # would drop the pieces of a client that has disconnected, and nobody would learn of it.
        _config("postprocessing", [PIECE], TEXT_OUTPUTS),
        _decoupled(_config("tensorrt_llm_bls", TEXT_INPUTS, TEXT_OUTPUTS)),
        _config("generate", TEXT_INPUTS, TEXT_OUTPUTS),
    ]


def _reward_models() -> list[pb.ModelConfig]:
    """Return the models of a reward engine.

    Those that clients ask for text are there too, each as one step: the engine refuses what they
    pass on, and says what it is. Without them Triton would say that there is no such model.
    """
    return [
        _config("reward", REWARD_INPUTS, REWARD_OUTPUTS),
        _config("reward_model", SENTENCE_INPUTS, SENTENCE_OUTPUTS),
        *(_decoupled(_config(name, TEXT_INPUTS, TEXT_OUTPUTS)) for name in REFUSING),
        _config("generate", TEXT_INPUTS, TEXT_OUTPUTS),
    ]


def _add_steps(config: pb.ModelConfig) -> None:
    """Add the steps preprocessing → tensorrt_llm → postprocessing, with one tensor between two."""
    config.platform = "ensemble"
    steps = config.ensemble_scheduling.step
    preprocessing = steps.add(model_name="preprocessing", model_version=-1)
    engine = steps.add(model_name="tensorrt_llm", model_version=-1)
    postprocessing = steps.add(model_name="postprocessing", model_version=-1)
    for tensor in TEXT_INPUTS:
        preprocessing.input_map[tensor.name] = tensor.name
    preprocessing.output_map[PROMPT.name] = STEP_PREFIX + PROMPT.name
    engine.input_map[PROMPT.name] = STEP_PREFIX + PROMPT.name
    engine.output_map[PIECE.name] = STEP_PREFIX + PIECE.name
    postprocessing.input_map[PIECE.name] = STEP_PREFIX + PIECE.name
    for output in TEXT_OUTPUTS:
        postprocessing.output_map[output.name] = output.name


def _config(name: str, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name)
    for tensor in inputs:
        # Triton only counts the inputs of a request. The models say which input is missing.
        config.input.add(
            name=tensor.name, data_type=_data_type(tensor), dims=tensor.dims, optional=True
        )
    for tensor in outputs:
        config.output.add(name=tensor.name, data_type=_data_type(tensor), dims=tensor.dims)
    return config


def _decoupled(config: pb.ModelConfig) -> pb.ModelConfig:
    config.model_transaction_policy.decoupled = True
    return config


def _data_type(tensor: Tensor) -> int:
    return int(pb.DataType.Value(f"TYPE_{tensor.dtype}"))
