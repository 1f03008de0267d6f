"""What the CPU engine needs to know beside the model itself: `cpu_engine.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nemotron_convert.errors import NemotronError

SETTINGS_NAME = "cpu_engine.json"


class CpuEngineSettings(BaseModel):
    """Written when the engine is built, read when it starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["bf16", "f32"]
    vocab_size: int
    max_seq_len: int
    """Prompt and answer together, in tokens."""
    max_batch_size: int
    """Requests computed in one step; more wait their turn."""
    max_num_tokens: int
    """Tokens computed in one step, over all requests."""
    kv_cache_tokens: int
    max_queue_size: int
    """Requests that wait for a place in a step; more are refused."""
    request_seconds: int
    """How long one request may take, waiting included."""

    def write(self, folder: Path) -> None:
        (folder / SETTINGS_NAME).write_text(self.model_dump_json(indent=2) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> CpuEngineSettings:
        """NemotronError if the folder is no CPU engine."""
        path = folder / SETTINGS_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise NemotronError(
                "not a CPU engine", where=path, remedy="build it again with --profile cpu"
            ) from error
