"""The interface of a lane, and the results of a build."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from packaging.specifiers import SpecifierSet

from nemotron_build.installed import installed_versions
from nemotron_build.lanes.deployment import Deployment, Sizing
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.manifest import Manifest
from nemotron_convert.target.trtllm_config import CONFIG_NAME
from nemotron_core.errors import NemotronError
from nemotron_core.files import FileEntry
from nemotron_core.reward import ModelKind


@dataclass(frozen=True)
class BuildPlan:
    """The files and the command of a build."""

    files: list[str]
    """Names of the files in the engine folder, without `engine.json` and the tokenizer."""
    command: list[str] | None = None
    """Command that writes the files. `None` means that this program writes them."""


@dataclass(frozen=True)
class BuiltEngine:
    """The facts about a new engine that go into `engine.json`."""

    checkpoint: str
    """SHA-256 (hex) of the checkpoint's content."""
    max_seq_len: int
    vocab_size: int
    gpu: str | None = None
    """The GPU that the engine was built on, if it runs on no other kind."""
    files: dict[str, FileEntry] = field(default_factory=dict)
    """Hashes that are known already. The hashes of all other files are computed."""


@dataclass(frozen=True)
class Library:
    """A library that a lane computes with."""

    names: tuple[str, ...]
    """Names of the distributions that bring it, of which one is enough."""
    versions: tuple[str, ...]
    """Versions that fit, as alternatives, each in the syntax of PEP 440."""


class Lane(ABC):
    """One way to run the model. The profile that a method gets is of this lane."""

    libraries: tuple[Library, ...]
    is_compiled: ClassVar[bool] = False
    """Whether an engine works only with the versions of the libraries that have built it."""
    kinds: ClassVar[tuple[ModelKind, ...]] = ("text",)
    """What models it serves."""
    has_virtual_tokens: ClassVar[bool] = False
    """Whether it puts the vectors of a P-tuning in front of prompts."""

    @abstractmethod
    def plan(self, checkpoint: Path, output: Path, profile: Any) -> BuildPlan:
        """Return what `build` would do. Raises `NemotronError` if the checkpoint does not fit."""

    @abstractmethod
    def conversion(self, profile: Any) -> list[str]:
        """Return the options of `nemotron convert` for a checkpoint that fits the profile."""

    @abstractmethod
    def build(self, checkpoint: Path, folder: Path, profile: Any) -> BuiltEngine:
        """Write the engine into `folder`. Raises `NemotronError` if this machine cannot."""

    @abstractmethod
    def deployment(self, profile: Any) -> Deployment:
        """Return the machines and processes that serve an engine of the profile."""

    @abstractmethod
    def sizing(self, profile: Any) -> Sizing:
        """Return the memory layout of an engine of the profile."""

    def check_machine(self, profile: Any) -> None:  # noqa: B027  # a lane may have nothing to check
        """Raise `NemotronError` if this machine cannot serve an engine of the profile.

        Its libraries are checked beforehand.
        """

    def installed(self, profile: Any) -> dict[str, str]:
        """Return the version of each library, in the environment of the engine's process.

        Raises `NemotronError` if a library is missing or has a version that does not fit.
        """
        python = profile.engine.python
        return dict(_installed(library, python) for library in self.libraries)


def _installed(library: Library, python: Path | None) -> tuple[str, str]:
    versions = installed_versions(library.names, python)
    where = str(python) if python else None
    if not versions:
        raise NemotronError(
            f"{library.names[0]} is not installed",
            where=where,
            remedy="run this in the lane's container, name the environment that has it as"
            " engine.python in the profile, or use the profile cpu",
        )
    name, found = next(iter(versions.items()))
    if not any(SpecifierSet(text).contains(found, prereleases=True) for text in library.versions):
        raise NemotronError(
            f"{name} {found} is installed, this lane needs {' or '.join(library.versions)}",
            where=where,
            remedy="use another container, or a profile of another lane",
        )
    return name, found


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a TensorRT-LLM checkpoint.

    Raises `NemotronError` if no engine of this model can be built from it.
    """
    checkpoint = Checkpoint.open(path)
    if checkpoint.config.apply_query_key_layer_scaling:
        raise NemotronError(
            "apply_query_key_layer_scaling is true, which this model does not have",
            where=path / CONFIG_NAME,
            remedy="convert again",
        )
    return checkpoint


def require_options(folder: Path, manifest: Manifest, **expected: str | int) -> None:
    """Raise `NemotronError` if the checkpoint in `folder` was converted with other options.

    The names of `expected` are those of the manifest's fields.
    """
    for name, value in expected.items():
        if (actual := getattr(manifest, name)) != value:
            label = name.upper() if name in ("tp", "pp") else name
            raise NemotronError(
                f"the checkpoint has {label} {actual}, the profile {value}",
                where=folder,
                remedy=f"convert with --{name.replace('_', '-')} {value}, or use another profile",
            )
