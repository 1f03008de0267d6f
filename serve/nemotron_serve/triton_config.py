"""The configuration of every Triton model, rendered from the contract and a lane's data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf import text_format
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2 as pb

from nemotron_build.lanes.deployment import EngineModel
from nemotron_core.wire import ENGINE_OUTPUTS, PROMPT_OUTPUTS, TEXT_INPUTS, TEXT_OUTPUTS, Tensor

ANSWER_INPUTS = [tensor for tensor in ENGINE_OUTPUTS if tensor.name != "sequence_length"]
"""The engine's outputs that the ensemble's last step reads."""
ENGINE_PREFIX = "_engine_"
PROMPT_PREFIX = "_"
"""Prefixes of tensors between two steps, which are no inputs or outputs of the ensemble."""


def to_text(config: Message) -> str:
    """Return a configuration as the text of a `config.pbtxt`."""
    return str(text_format.MessageToString(config))


def model_configs(
    engine: EngineModel, prompt: Mapping[str, str]
) -> list[tuple[pb.ModelConfig, str]]:
    """Return the configuration of each Triton model and the name of its code's folder, or "".

    `prompt` are the parameters of the models that make prompts.

    Around a foreign engine, `ensemble` is the BLS model too: no step of a Triton ensemble can see
    both a stream and what came before it, and a foreign engine passes on only tokens.
    """
    prompt = {**prompt, "foreign_engine": "true" if engine.is_foreign else "false"}
    configs = [
        (tensorrt_llm(engine), "" if engine.is_foreign else "tensorrt_llm"),
        (generate(prompt), "generate"),
        (bls("tensorrt_llm_bls", prompt), "tensorrt_llm_bls"),
    ]
    if engine.is_foreign:
        return [*configs, (bls("ensemble", prompt), "tensorrt_llm_bls")]
    tokenizer = {"tokenizer_path": prompt["tokenizer_path"]}
    return [
        *configs,
        (ensemble(), ""),
        (preprocessing(prompt), "preprocessing"),
        (postprocessing(tokenizer), "postprocessing"),
    ]


def ensemble() -> pb.ModelConfig:
    """Return the ensemble: preprocessing → tensorrt_llm → postprocessing."""
    config = _config("ensemble", TEXT_INPUTS, TEXT_OUTPUTS)
    config.platform = "ensemble"
    steps = config.ensemble_scheduling.step
    prompt = steps.add(model_name="preprocessing", model_version=-1)
    engine = steps.add(model_name="tensorrt_llm", model_version=-1)
    answer = steps.add(model_name="postprocessing", model_version=-1)
    for text_input in TEXT_INPUTS:
        prompt.input_map[text_input.name] = text_input.name
        if text_input.engine_name:
            engine.input_map[text_input.engine_name] = text_input.name
    for tensor in PROMPT_OUTPUTS:
        prompt.output_map[tensor.name] = PROMPT_PREFIX + tensor.name
        engine.input_map[tensor.name] = PROMPT_PREFIX + tensor.name
    for tensor in ANSWER_INPUTS:
        engine.output_map[tensor.name] = ENGINE_PREFIX + tensor.name
        answer.input_map[tensor.name] = ENGINE_PREFIX + tensor.name
    for tensor in TEXT_OUTPUTS:
        answer.output_map[tensor.name] = tensor.name
    return config


def preprocessing(parameters: Mapping[str, str]) -> pb.ModelConfig:
    """Return the ensemble's first step."""
    return _python("preprocessing", TEXT_INPUTS, PROMPT_OUTPUTS, parameters)


def tensorrt_llm(engine: EngineModel) -> pb.ModelConfig:
    """Return the engine, whose name, inputs and outputs are those of the C++ backend."""
    config = _decoupled(_config("tensorrt_llm", engine.inputs, engine.outputs))
    config.backend = engine.backend
    config.max_batch_size = engine.max_batch_size
    for tensor, entry in zip(engine.inputs, config.input, strict=True):
        entry.optional = tensor.name not in engine.required_inputs
        if engine.max_queue_size is None:
            continue
        if tensor.dims == (1,) and tensor.dtype != "STRING":
            entry.reshape.SetInParent()  # to no dimension besides the batch
        else:
            entry.allow_ragged_batch = True
    if engine.max_queue_size is not None:
        # The backend adds requests to its running batch itself. The delay of 0 only keeps Triton
        # from waiting for more requests. The backend reads the length of its own queue from here.
        config.dynamic_batching.max_queue_delay_microseconds = 0
        config.dynamic_batching.default_queue_policy.max_queue_size = engine.max_queue_size
    return _on_cpu(config, engine.parameters)


def postprocessing(parameters: Mapping[str, str]) -> pb.ModelConfig:
    """Return the ensemble's last step.

    It is decoupled because it sends fewer responses than it gets requests. A single instance keeps
    them in order. There is no dynamic batching: if a client disconnects, Triton drops the client's
    tokens from the batcher's queue, and from then on its count of them is wrong. Without batching
    the tokens reach the model, which then stops the engine.
    """
    return _decoupled(_python("postprocessing", ANSWER_INPUTS, TEXT_OUTPUTS, parameters))


def generate(parameters: Mapping[str, str]) -> pb.ModelConfig:
    """Return the model that answers like the ensemble, with a single response."""
    return _python("generate", TEXT_INPUTS, TEXT_OUTPUTS, parameters)


def bls(name: str, parameters: Mapping[str, str]) -> pb.ModelConfig:
    """Return the model that does the same as the ensemble in one step, under any name."""
    return _decoupled(_python(name, TEXT_INPUTS, TEXT_OUTPUTS, parameters))


def _python(
    name: str,
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    parameters: Mapping[str, str],
) -> pb.ModelConfig:
    config = _config(name, inputs, outputs)
    config.backend = "python"
    return _on_cpu(config, parameters)


def _config(name: str, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, max_batch_size=1)
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


def _on_cpu(config: pb.ModelConfig, parameters: Mapping[str, str]) -> pb.ModelConfig:
    """Add one instance, for which Triton reserves no GPU, and the parameters."""
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def _data_type(tensor: Tensor) -> int:
    return int(pb.DataType.Value(f"TYPE_{tensor.dtype}"))
