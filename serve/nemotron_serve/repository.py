"""The model repository that Triton reads: the shipped models, configured for one engine."""

from __future__ import annotations

import shutil
from pathlib import Path

from nemotron_build.engine_folder import EngineRecord
from nemotron_build.lanes import lane_of
from nemotron_build.profile import Profile
from nemotron_core.files import text_digest
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_core.resources import resource
from nemotron_core.text.prompt import template_hash
from nemotron_serve.triton_config import model_configs, to_text

IDENTITY_MODEL = "tensorrt_llm_bls"
"""The model whose parameters tell clients which engine answers them."""


def models_folder() -> Path:
    """Return the folder of the shipped Triton models, one folder of code each."""
    return resource(__file__, "model_repository")


def identity(record: EngineRecord) -> dict[str, str]:
    """Return the SHA-256 (hex) of everything that decides an answer's text."""
    return {
        "engine": text_digest(record.model_dump_json()),
        "checkpoint": record.checkpoint,
        "template": template_hash(),
    }


def render_repository(
    engine: Path, record: EngineRecord, profile: Profile, target: Path, *, drain_file: Path
) -> None:
    """Write the models to the new folder `target`.

    While `drain_file` exists, the models refuse new requests.
    """
    engine, limits = engine.resolve(), profile.limits
    prompt = {
        "tokenizer_path": str(engine / TOKENIZER_NAME),
        "max_seq_len": str(record.max_seq_len),
        "vocab_size": str(record.vocab_size),
        "lane": profile.lane,
        "drain_file": str(drain_file),
        "max_requests": str(limits.max_batch_size + limits.max_queue_size),
        "long_answers": limits.long_answers,
        "request_seconds": str(profile.timeouts.request),
    }
    for config, code in model_configs(lane_of(profile).engine_model(profile, engine), prompt):
        if config.name == IDENTITY_MODEL:
            for name, value in identity(record).items():
                config.parameters[name].string_value = value
        folder = target / config.name
        if code:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(models_folder() / code, folder, ignore=ignore)
        # Triton wants a version folder for a model without code, too.
        (folder / "1").mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(to_text(config), encoding="utf-8")
