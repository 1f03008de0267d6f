"""Settings of an engine: a JSON file in its folder, beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from typing_extensions import Self

from nemotron_core.errors import NemotronError


class DraftSettings(BaseModel):
    """What proposes the next tokens, of which the engine checks several in one step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Path | None
    """Folder of the engine that proposes them. `None` means that they are copied from the text:
    what followed its last tokens at an earlier place."""
    tokens: PositiveInt
    """Most tokens that are proposed in a step."""


class EngineSettings(BaseModel):
    """Settings that are written when the engine is built and read when it starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    NAME: ClassVar[str]

    vocab_size: int
    max_seq_len: int
    """Most tokens of a prompt and its answer together."""
    max_batch_size: int
    """Number of requests computed in one step; further requests wait."""
    max_num_tokens: int
    """Number of tokens computed in one step, over all requests."""
    max_queue_size: int
    """Number of requests that may wait for a step; further requests are refused."""
    request_seconds: int
    """Time limit of a request in seconds, waiting included."""
    draft: DraftSettings | None = None
    """`None` means one token in a step."""

    def write(self, folder: Path) -> None:
        """Write the settings into an engine folder."""
        (folder / self.NAME).write_text(self.model_dump_json(indent=2) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the settings of an engine. Raises `NemotronError` if it is not of this lane."""
        path = folder / cls.NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise NemotronError(
                "not an engine of this lane", where=path, remedy="build it again"
            ) from error


class CpuEngineSettings(EngineSettings):
    """Settings of the CPU lane's engine."""

    NAME = "cpu_engine.json"
    GRAPH_NAME: ClassVar = "openvino_model.xml"
    WEIGHTS_NAME: ClassVar = "openvino_model.bin"
    """File names that openvino-genai expects."""

    dtype: Literal["bf16", "f32"]
    kv_cache_tokens: int
    virtual_tokens: int = 0
    """Number of tokens that stand before every prompt, with the ids after the vocabulary's.
    `max_seq_len` is without them."""

    @property
    def prefix(self) -> list[int]:
        """Ids of the virtual tokens."""
        return list(range(self.vocab_size, self.vocab_size + self.virtual_tokens))


class TensorRTEngineSettings(EngineSettings):
    """Settings of the TensorRT lane's engine; its split is in its `config.json`."""

    NAME = "tensorrt_engine.json"

    paged_context: bool
    """Whether a prompt's attention reads the paged KV cache, as chunks and reused blocks need."""
    kv_cache_share: float
    """Fraction of the GPU memory that is free once the weights are loaded."""
    logits: Literal["none", "generation", "context"] = "none"
    """Whole logits that it can return: of no token, of generated ones, of those and prompts."""


class HFEngineSettings(EngineSettings):
    """Settings of an engine that is a Hugging Face folder, split when it is loaded."""

    tp: int
    pp: int
    gpus_per_node: int
    kv_cache_dtype: Literal["bf16", "fp8"]


class PyTorchEngineSettings(HFEngineSettings):
    """Settings of the PyTorch lane's engine."""

    NAME = "pytorch_engine.json"

    kv_cache_share: float
    """Fraction of the GPU memory that is free once the weights are loaded."""
    stream_interval: int = 1
    """Number of tokens that the library gathers for each part of an answer."""


class LoraLimits(BaseModel):
    """Room for LoRA adapters that are served beside the model, by their names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_adapters: PositiveInt
    """Number of adapters that can be loaded at the same time."""
    max_rank: PositiveInt = 32
    """Largest rank of an adapter."""


class VllmEngineSettings(HFEngineSettings):
    """Settings of the vLLM lane's engine. `memory_share` or `kv_cache_tokens` is `None`."""

    NAME = "vllm_engine.json"

    memory_share: float | None
    """Fraction of a GPU's memory that the engine takes in all."""
    kv_cache_tokens: int | None
    """Number of tokens in the KV cache of an engine on CPUs."""
    lora: LoraLimits | None = None
    """`None` means that no adapter is served."""
