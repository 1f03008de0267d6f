"""The model repository as Triton reads it: the shipped models, this engine's values filled in."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import Template

from nemotron_build.resources import resource
from nemotron_convert.convert import TOKENIZER_NAME
from nemotron_convert.errors import NemotronError
from nemotron_engine.settings import CpuEngineSettings


def render_repository(engine: Path, target: Path, *, drain_file: Path) -> None:
    """Copy the models to the new folder `target`, every `${placeholder}` replaced.

    While `drain_file` exists, new requests are refused.

    NemotronError if a path would not survive in a `config.pbtxt`.
    """
    engine = engine.resolve()
    values = {
        "gpt_model_path": str(engine),
        "tokenizer_path": str(engine / TOKENIZER_NAME),
        "drain_file": str(drain_file),
        "max_seq_len": str(CpuEngineSettings.read(engine).max_seq_len),
    }
    for value in values.values():
        if not value.isprintable() or '"' in value or "\\" in value:
            raise NemotronError(
                "the path contains a quote, a backslash or a control character",
                where=engine,
                remedy="move the engine to a plainer path",
            )
    shutil.copytree(
        resource("model_repository"), target, ignore=shutil.ignore_patterns("__pycache__")
    )
    for config in target.glob("*/config.pbtxt"):
        template = Template(config.read_text(encoding="utf-8"))
        config.write_text(template.substitute(values), encoding="utf-8")
        # Triton wants a version's folder; the ensemble's is empty, and git keeps no empty folders.
        (config.parent / "1").mkdir(exist_ok=True)
