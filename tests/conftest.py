"""What is expensive is made once: the tiny model's checkpoint, its engines, one Triton server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from nemotron_core.text import Tokenizer
from tests.tiny_nemotron.answers import ExactAnswer, load_answers
from tests.tiny_nemotron.nemo_file import NEMO

if TYPE_CHECKING:  # the fast tests start without these
    from nemotron_build.profile import Profile
    from nemotron_serve.server import TritonServer

settings.register_profile("suite", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("suite")


def free_ports(profile: Profile) -> Profile:
    ports = profile.ports.model_copy(update=dict.fromkeys(type(profile.ports).model_fields, 0))
    return profile.model_copy(update={"ports": ports})


@pytest.fixture(scope="session")
def cpu_profile() -> Profile:
    from nemotron_build.profile import load_profile

    return free_ports(load_profile("cpu"))


@pytest.fixture(scope="session")
def checkpoint_tp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nemotron_convert.convert import Options, convert
    from nemotron_convert.shards import Parallel

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    convert(NEMO, folder, Options(Parallel(8, 1)))
    return folder


@pytest.fixture(scope="session")
def engine_bf16(checkpoint_tp8: Path, cpu_profile: Profile) -> Path:
    from nemotron_build.engine_folder import build_engine

    folder = checkpoint_tp8.with_name("engine-bf16")
    build_engine(checkpoint_tp8, folder, cpu_profile)
    return folder


@pytest.fixture(scope="session")
def engine_f32(checkpoint_tp8: Path, cpu_profile: Profile) -> Path:
    from nemotron_build.engine_folder import build_engine

    folder = checkpoint_tp8.with_name("engine-f32")
    build_engine(checkpoint_tp8, folder, cpu_profile.model_copy(update={"dtype": "f32"}))
    return folder


@pytest.fixture(scope="session")
def checkpoint_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TP 8, calibrated on the project's own texts."""
    from nemotron_convert.convert import Options, convert
    from nemotron_convert.shards import Parallel
    from nemotron_convert.target.layout import Dtype, Precision

    folder = tmp_path_factory.mktemp("tiny-fp8") / "checkpoint"
    convert(NEMO, folder, Options(Parallel(8, 1), precision=Precision(Dtype.FP8)))
    return folder


@pytest.fixture(scope="session")
def tokenizer(checkpoint_tp8: Path) -> Tokenizer:
    return Tokenizer(checkpoint_tp8 / "tokenizer.model")


@pytest.fixture(scope="session")
def answers() -> list[ExactAnswer]:
    return load_answers()


@pytest.fixture(scope="session")
def server(engine_bf16: Path, cpu_profile: Profile) -> Iterator[TritonServer]:
    from nemotron_serve.server import TritonServer

    with TritonServer(engine_bf16, cpu_profile) as running:
        yield running
