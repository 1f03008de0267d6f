"""Reward models, made once: a golden one with expected scores, and a tiny trained one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nemotron_build.profile import Profile

GOLDEN = Path(__file__).parent / "golden" / "reward"
REWARD = GOLDEN / "reward_1layer.nemo"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
"""Texts, tokens, scores and rewards of conversations, computed independently of this project."""
CASES: list[dict[str, Any]] = EXPECTED["cases"]
F32_ERROR, BF16_ERROR = 1e-5, 1e-2
"""Largest differences from the expected scores of an engine that computes in F32, and in BF16."""


@pytest.fixture(scope="session")
def checkpoint_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nemotron_convert.convert import Options, convert
    from nemotron_convert.shards import Parallel

    folder = tmp_path_factory.mktemp("reward") / "checkpoint"
    convert(REWARD, folder, Options(Parallel(4, 1)))
    return folder


@pytest.fixture(scope="session")
def engine_reward(checkpoint_reward: Path, cpu_profile: Profile) -> Path:
    """It computes in F32."""
    from nemotron_build.engine_folder import build_engine

    folder = checkpoint_reward.with_name("engine-f32")
    build_engine(checkpoint_reward, folder, cpu_profile.model_copy(update={"dtype": "f32"}))
    return folder


@pytest.fixture(scope="session")
def engine_tiny_reward(tmp_path_factory: pytest.TempPathFactory, cpu_profile: Profile) -> Path:
    """The head says how long an answer is."""
    from nemotron_build.engine_folder import build_engine
    from nemotron_convert.convert import Options, convert
    from nemotron_convert.shards import Parallel
    from tests.tiny_reward.nemo_file import pack_reward

    folder = tmp_path_factory.mktemp("tiny-reward")
    convert(pack_reward(folder / "reward.nemo"), folder / "checkpoint", Options(Parallel(1, 1)))
    build_engine(folder / "checkpoint", folder / "engine", cpu_profile)
    return folder / "engine"
