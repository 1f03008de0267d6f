"""INT8 and INT4 engines of the tiny model: answers and distributions near the BF16 model's."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_build.engine_folder import build_engine
from nemotron_build.profile import Profile, with_weights
from nemotron_build.weights import Weights
from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.text import Tokenizer
from nemotron_engine.adapters import load_adapter
from tests.engine.requests import Engine
from tests.engine.test_openvino import exact_fraction
from tests.tiny_nemotron.answers import ExactAnswer

SIZES = {"int8": 0.53, "int4": 0.36}
"""Largest size of the weights' file, over that of BF16."""
EXACT = {"int8": 0.95, "int4": 0.3}
"""Least fraction of the trained answers. The model is tiny, so that each rounding counts."""


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_answers_stay(
    weights: Weights,
    checkpoint_tp8: Path,
    engine_bf16: Path,
    cpu_profile: Profile,
    answers: list[ExactAnswer],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    build_engine(checkpoint_tp8, tmp_path / "engine", with_weights(cpu_profile, weights))
    name = CpuEngineSettings.WEIGHTS_NAME
    size = (tmp_path / "engine" / name).stat().st_size
    assert size < SIZES[weights] * (engine_bf16 / name).stat().st_size
    engine = Engine(load_adapter("cpu", tmp_path / "engine"))
    assert exact_fraction(engine, answers, tokenizer) >= EXACT[weights]
