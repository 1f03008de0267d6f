"""The model repository that Triton reads: the shipped models, configured for one engine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from nemotron_build.engine_folder import EngineRecord
from nemotron_build.profile import Profile
from nemotron_core.family import LARGEST
from nemotron_core.files import text_digest
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_core.resources import resource
from nemotron_core.text.chat_format import ChatFormat
from nemotron_core.text.prompt import template_hash
from nemotron_serve.triton_config import model_configs, to_text

CODE = {"ensemble": "tensorrt_llm_bls"}
"""The folder of a model's code, where it has another name: a reward engine's `ensemble`, which is
one step."""


@dataclass(frozen=True)
class ServerFiles:
    """The files by which the parts of one server find each other."""

    folder: Path
    engine_socket: Path

    @property
    def drain_file(self) -> Path:
        """While it exists, the models refuse new requests."""
        return self.folder / "draining"

    @property
    def acknowledgements(self) -> Path:
        """Socket between two steps of the ensemble."""
        return self.folder / "acknowledgements.sock"

    @property
    def models(self) -> Path:
        """Triton's model repository."""
        return self.folder / "models"


def models_folder() -> Path:
    """Return the folder of the shipped Triton models, one folder of code each."""
    return resource(__file__, "model_repository")


def identity(engine: Path, record: EngineRecord) -> dict[str, str]:
    """Return the SHA-256 (hex) of everything that decides an answer's text."""
    return {
        "engine": text_digest(record.model_dump_json()),
        "checkpoint": record.checkpoint,
        "template": template_hash(ChatFormat.read(engine)),
    }


def render_repository(
    engine: Path,
    record: EngineRecord,
    profile: Profile,
    files: ServerFiles,
    target: Path | None = None,
) -> None:
    """Write the models to the new folder `target`, which is `files.models` if it is `None`."""
    parameters = {
        "tokenizer_path": str(engine.resolve() / TOKENIZER_NAME),
        "max_seq_len": str(record.max_seq_len),
        "long_answers": profile.limits.long_answers,
        "engine_socket": str(files.engine_socket),
        "drain_file": str(files.drain_file),
        "acknowledgements": str(files.acknowledgements),
        "kind": record.kind,
        "model": record.model or LARGEST,
        # By these, clients learn which engine answers them.
        **identity(engine, record),
    }
    for config in model_configs(parameters, profile.limits.max_batch_size, record.kind):
        folder = (target or files.models) / config.name
        if config.backend:
            ignore = shutil.ignore_patterns("__pycache__")
            code = CODE.get(config.name, config.name)
            shutil.copytree(models_folder() / code, folder, ignore=ignore)
        # Triton wants a version folder for a model without code, too.
        (folder / "1").mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(to_text(config), encoding="utf-8")
