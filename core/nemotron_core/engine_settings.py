"""What an engine needs to know beside the model itself: a file in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from nemotron_core.errors import NemotronError


class EngineSettings(BaseModel):
    """Written when the engine is built, read when it starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    NAME: ClassVar[str]

    vocab_size: int
    max_seq_len: int
    """Prompt and answer together, in tokens."""
    max_batch_size: int
    """Requests computed in one step; more wait their turn."""
    max_num_tokens: int
    """Tokens computed in one step, over all requests."""
    max_queue_size: int
    """Requests that wait for a place in a step; more are refused."""
    request_seconds: int
    """How long one request may take, waiting included."""

    def write(self, folder: Path) -> None:
        (folder / self.NAME).write_text(self.model_dump_json(indent=2) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """NemotronError if the folder is no engine of this lane."""
        path = folder / cls.NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise NemotronError(
                "not an engine of this lane", where=path, remedy="build it again"
            ) from error


class CpuEngineSettings(EngineSettings):
    NAME = "cpu_engine.json"
    GRAPH_NAME: ClassVar = "openvino_model.xml"
    WEIGHTS_NAME: ClassVar = "openvino_model.bin"
    """The names that openvino-genai looks for."""

    dtype: Literal["bf16", "f32"]
    kv_cache_tokens: int


class PyTorchEngineSettings(EngineSettings):
    NAME = "pytorch_engine.json"

    tp: int
    pp: int
    gpus_per_node: int
    kv_cache_dtype: Literal["bf16", "fp8"]
    kv_cache_share: float
    """Of the GPU memory that is free once the weights are loaded."""
