"""What every lane can say of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.message import Message

from nemotron_build.profile import Profile
from nemotron_core.errors import NemotronError
from nemotron_core.files import FileEntry


@dataclass(frozen=True)
class BuildPlan:
    """What a build would do."""

    files: list[str]
    """Names in the engine folder, beside `engine.json` and the tokenizer."""
    command: list[str] | None = None
    """The program that writes them, if it is not this one."""


@dataclass(frozen=True)
class BuiltEngine:
    """What a build has found out for `engine.json`."""

    checkpoint: str
    """SHA-256 (hex) of the checkpoint's content."""
    max_seq_len: int
    vocab_size: int
    gpu: str | None = None
    files: dict[str, FileEntry] = field(default_factory=dict)
    """Hashes that are known already; the others are computed."""


@dataclass(frozen=True)
class ModelSettings:
    """What the Triton models of one server have to know."""

    engine: Path
    profile: Profile
    max_seq_len: int
    vocab_size: int
    tokenizer: Path
    drain_file: Path
    """While it exists, new requests are refused."""

    def prompt(self) -> dict[str, str]:
        """Parameters of the models that make prompts."""
        limits = self.profile.limits
        return {
            "tokenizer_path": str(self.tokenizer),
            "max_seq_len": str(self.max_seq_len),
            "vocab_size": str(self.vocab_size),
            "lane": self.profile.lane,
            "drain_file": str(self.drain_file),
            "max_requests": str(limits.max_batch_size + limits.max_queue_size),
            "long_answers": limits.long_answers,
            "request_seconds": str(self.profile.timeouts.request),
        }


class Lane(Protocol):
    """One way to run the model. The profile that a method gets is of this lane."""

    libraries: tuple[str, ...]
    """Distributions whose version an engine depends on."""
    progress_metric: str
    """Grows on Triton's metrics page with every step of the engine."""

    def plan(self, checkpoint: Path, output: Path, profile: Any) -> BuildPlan:
        """NemotronError if this checkpoint is not what the profile needs."""

    def build(self, checkpoint: Path, folder: Path, profile: Any) -> BuiltEngine:
        """Write the engine into `folder`; NemotronError if this machine cannot."""

    def check_versions(self) -> None:
        """NemotronError if its libraries are not here, or are others than it needs."""

    def check_machine(self, profile: Any) -> None:
        """NemotronError if this machine cannot serve such an engine."""

    def models(self, settings: ModelSettings) -> list[tuple[Message, str]]:
        """Each Triton model's configuration, and the folder of its code; "" if it has none."""


def installed_version(name: str) -> str:
    """Of a distribution; NemotronError if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise NemotronError(
            f"{name} is not installed",
            remedy="run this in the lane's container, or use the profile cpu",
        ) from error
