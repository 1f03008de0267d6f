from __future__ import annotations

from pathlib import Path

import pytest

from tests.convert.nemo import GOLDEN
from tests.tiny_nemotron.nemo_file import read_tokenizer


@pytest.fixture(scope="session", params=["golden", "tiny"])
def tokenizer_path(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two models' tokenizers; both have a piece for each byte."""
    if request.param == "golden":
        return GOLDEN / "hf_tiny" / "tokenizer.model"
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(read_tokenizer())
    return path
