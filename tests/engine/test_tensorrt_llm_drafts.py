"""The PyTorch lane's drafts: what the library is given, with a stand-in that refuses the rest."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nemotron_core.engine_settings import DraftSettings, PyTorchEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_engine.adapters.tensorrt_llm_draft import draft_arguments
from tests.standins.container import add_library


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    add_library(tmp_path / "packages", "1.2.1")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    yield importlib.import_module("tensorrt_llm.llmapi")
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


def settings(draft: DraftSettings | None) -> PyTorchEngineSettings:
    return PyTorchEngineSettings(
        vocab_size=1536,
        max_seq_len=4096,
        max_batch_size=64,
        max_num_tokens=8192,
        max_queue_size=448,
        request_seconds=3600,
        kv_cache_share=0.9,
        tp=1,
        pp=1,
        gpus_per_node=1,
        kv_cache_dtype="bf16",
        draft=draft,
    )


def folder(path: Path, vocabulary: bytes = b"pieces") -> Path:
    path.mkdir()
    (path / "tokenizer.model").write_bytes(vocabulary)
    (path / "config.json").write_text('{"model_type": "nemotron"}')
    return path


def test_without_a_draft(api: Any, tmp_path: Path) -> None:
    arguments = draft_arguments(api, tmp_path, settings(None))
    assert arguments == {"disable_overlap_scheduler": False}


def test_ngrams_are_those_of_the_request_itself(api: Any, tmp_path: Path) -> None:
    arguments = draft_arguments(api, tmp_path, settings(DraftSettings(engine=None, tokens=5)))
    assert arguments["disable_overlap_scheduler"] is True
    config = arguments["speculative_config"]
    assert isinstance(config, api.NGramDecodingConfig)
    assert (config.max_draft_len, config.max_matching_ngram_size) == (5, 3)
    assert config.is_public_pool is False


def test_another_engine(api: Any, tmp_path: Path) -> None:
    small, large = folder(tmp_path / "small"), folder(tmp_path / "large")
    draft = DraftSettings(engine=small, tokens=4)
    config = draft_arguments(api, large, settings(draft))["speculative_config"]
    assert isinstance(config, api.DraftTargetDecodingConfig)
    assert (config.max_draft_len, config.speculative_model_dir) == (4, str(small))
    (small / "config.json").unlink()
    with pytest.raises(ValidationError, match="is no model"):
        draft_arguments(api, large, settings(draft))


def test_another_vocabulary(api: Any, tmp_path: Path) -> None:
    small, large = folder(tmp_path / "small", b"others"), folder(tmp_path / "large")
    draft = DraftSettings(engine=small, tokens=4)
    with pytest.raises(NemotronError, match="another vocabulary than the engine"):
        draft_arguments(api, large, settings(draft))
