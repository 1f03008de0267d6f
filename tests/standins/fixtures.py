"""Engines for the lanes of TensorRT-LLM, in a container of stand-ins that this process is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tiny_nemotron.nemo_file import NEMO

if TYPE_CHECKING:
    from nemotron_build.profile import Profile
    from tests.standins.container import Container

H200 = "NVIDIA H200, 143771, 9.0"
PROFILES = {"tensorrt": ("h200-bf16-tp8", "1.2.1"), "pytorch": ("h200-bf16-tp8-pytorch", "1.3.0")}
"""The profile that is served on a lane, and the version of the library."""
ENGINE_NAME = "NEMOTRON_STANDIN_ENGINE"
"""File in an engine's folder that names the CPU engine behind the stand-in."""


@pytest.fixture(scope="session")
def container(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """The container with the version of the lane that `--lane` names, as this process's own."""
    from tests.standins.container import make_container

    _, version = PROFILES[request.config.option.lane]
    made = make_container(tmp_path_factory.mktemp("standins") / "root", gpu=H200, version=version)
    with pytest.MonkeyPatch.context() as patch:
        for name, text in made.environment.items():
            patch.setenv(name, text)
        patch.syspath_prepend(str(made.root / "packages"))
        yield made


@pytest.fixture(scope="session")
def standin_profile(request: pytest.FixtureRequest, container: Container) -> Profile:
    from nemotron_build.profile import load_profile

    name, _ = PROFILES[request.config.option.lane]
    return load_profile(name).model_copy(update={"triton": container.triton})


@pytest.fixture(scope="session")
def engine_tensorrt(checkpoint_tp8: Path, standin_profile: Profile) -> Path:
    from nemotron_build.engine_folder import build_engine

    folder = checkpoint_tp8.with_name("engine-tensorrt")
    build_engine(checkpoint_tp8, folder, standin_profile)
    return folder


@pytest.fixture(scope="session")
def engine_pytorch(
    engine_bf16: Path, standin_profile: Profile, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from nemotron_build.engine_folder import build_engine
    from nemotron_convert.convert import Options, convert
    from nemotron_convert.shards import Parallel
    from nemotron_convert.target.layout import Format

    folder = tmp_path_factory.mktemp("pytorch")
    convert(NEMO, folder / "hf", Options(Parallel(1, 1), format=Format.HF))
    build_engine(folder / "hf", folder / "engine", standin_profile)
    (folder / "engine" / ENGINE_NAME).write_text(str(engine_bf16))
    return folder / "engine"
