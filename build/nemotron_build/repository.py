"""The model repository as Triton reads it: the shipped models, configured for this engine."""

from __future__ import annotations

import shutil
from pathlib import Path

from google.protobuf.message import Message

from nemotron_build import model_config
from nemotron_build.resources import resource
from nemotron_convert.convert import TOKENIZER_NAME
from nemotron_engine.settings import CpuEngineSettings


def render_repository(engine: Path, target: Path, *, drain_file: Path) -> None:
    """Write the models to the new folder `target`.

    While `drain_file` exists, new requests are refused.
    """
    engine = engine.resolve()
    tokenizer = {"tokenizer_path": str(engine / TOKENIZER_NAME)}
    prompt = tokenizer | {
        "max_seq_len": str(CpuEngineSettings.read(engine).max_seq_len),
        "lane": "cpu",
        "drain_file": str(drain_file),
    }
    configs: tuple[Message, ...] = (
        model_config.ensemble(),
        model_config.preprocessing(prompt),
        model_config.tensorrt_llm({"gpt_model_path": str(engine)}),
        model_config.postprocessing(tokenizer),
        model_config.generate(),
        model_config.bls("tensorrt_llm_bls", prompt),
    )
    for config in configs:
        folder = target / config.name
        models = resource("model_repository") / config.name
        if models.is_dir():
            shutil.copytree(models, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "1").mkdir(parents=True, exist_ok=True)  # the ensemble's version has no files
        text = model_config.to_text(config)
        (folder / "config.pbtxt").write_text(text, encoding="utf-8")
