"""A vLLM on the CPU, in an environment of its own, and an engine of the tiny model for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tiny_nemotron.nemo_file import NEMO

if TYPE_CHECKING:
    from nemotron_build.profile import Profile

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".tools" / "vllm" / "bin" / "python"
PROFILE = Path(__file__).with_name("profile.yaml")


def pytest_configure(config: pytest.Config) -> None:
    """Let that environment's Python run the code of this checkout, whichever is installed there."""
    if config.option.lane == "vllm":
        folders = [entry for entry in sys.path if Path(entry).parent == ROOT]
        others = filter(None, [os.environ.get("PYTHONPATH")])
        os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *others])


@pytest.fixture(scope="session")
def vllm_profile() -> Profile:
    from nemotron_build.profile import EngineOptions, load_profile

    assert PYTHON.exists(), "make .venv/.vllm installs it"
    options = EngineOptions(python=PYTHON)
    return load_profile(str(PROFILE)).model_copy(update={"engine": options})


@pytest.fixture(scope="session")
def checkpoint_hf64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in the Hugging Face layout, with heads that vLLM computes on a CPU."""
    from nemotron_convert.convert import Options, convert
    from nemotron_convert.shards import Parallel
    from nemotron_convert.target.layout import Format
    from tests.vllm.wide_heads import widen_heads

    folder = tmp_path_factory.mktemp("hf")
    convert(NEMO, folder / "hf", Options(Parallel(1, 1), format=Format.HF))
    widen_heads(folder / "hf", folder / "hf64")
    return folder / "hf64"


@pytest.fixture(scope="session")
def engine_vllm(checkpoint_hf64: Path, vllm_profile: Profile) -> Path:
    from nemotron_build.engine_folder import build_engine

    folder = checkpoint_hf64.with_name("engine")
    build_engine(checkpoint_hf64, folder, vllm_profile)
    return folder
