"""The model repository as Triton reads it: the shipped models, configured for one engine."""

from __future__ import annotations

import shutil
from pathlib import Path

from nemotron_build.engine_folder import EngineRecord
from nemotron_build.lanes import LANES, ModelSettings
from nemotron_build.profile import Profile
from nemotron_core.files import text_digest
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_core.resources import resource
from nemotron_core.text.prompt import template_hash
from nemotron_serve import triton_config as model_config

CLIENTS_MODEL = "tensorrt_llm_bls"
"""Whose parameters tell clients what answers them."""


def models_folder() -> Path:
    """Return the folder of the shipped Triton models, one folder of code each."""
    return resource(__file__, "model_repository")


def identity(record: EngineRecord) -> dict[str, str]:
    """SHA-256 of what decides about an answer's text."""
    return {
        "engine": text_digest(record.model_dump_json()),
        "checkpoint": record.checkpoint,
        "template": template_hash(),
    }


def render_repository(
    engine: Path, record: EngineRecord, profile: Profile, target: Path, *, drain_file: Path
) -> None:
    """Write the models to the new folder `target`.

    While `drain_file` exists, new requests are refused.
    """
    engine = engine.resolve()
    settings = ModelSettings(
        engine=engine,
        profile=profile,
        max_seq_len=record.max_seq_len,
        vocab_size=record.vocab_size,
        tokenizer=engine / TOKENIZER_NAME,
        drain_file=drain_file,
    )
    for config, code in LANES[profile.lane].models(settings):
        if config.name == CLIENTS_MODEL:
            for name, value in identity(record).items():
                config.parameters[name].string_value = value
        folder = target / config.name
        if code:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(models_folder() / code, folder, ignore=ignore)
        (folder / "1").mkdir(parents=True, exist_ok=True)  # a model without code has a version too
        text = model_config.to_text(config)
        (folder / "config.pbtxt").write_text(text, encoding="utf-8")
