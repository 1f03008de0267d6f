"""What is expensive is made once: the tiny model's checkpoint, its engines, one server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from nemotron_core.text import Tokenizer
from tests.shared_server import run_again_if_triton_ended, shared_server
from tests.tiny_nemotron.answers import ExactAnswer, load_answers
from tests.tiny_nemotron.nemo_file import NEMO

if TYPE_CHECKING:  # the fast tests start without these
    from nemotron_build.profile import Profile
    from nemotron_serve.model_server import ModelServer

ROOT = Path(__file__).parent
SLOW_FIXTURES = {"server", "engine_bf16", "engine_f32", "checkpoint_fp8", "checkpoint_reward"}
SLOW = (
    *("docker", "fuzz", "helm", "host", "images", "serve", "slurm"),
    *("docs/test_readme.py", "docs/test_site.py", "test_tiny_nemotron.py"),
    *("attacks/test_damage.py", "attacks/test_torch_files.py", "bench/test_bench.py"),
    *("bench/test_load_client.py", "engine/test_server.py"),
    *("build/test_reuse.py", "build/test_tensorrt_lane.py", "client/test_client.py"),
    *("client/test_failures.py", "client/test_http.py"),
    *("data/test_failures.py", "engine/test_openvino.py", "engine/test_weights.py"),
    "engine/test_drafts.py",
    *("convert/test_inspect.py", "convert/test_legacy.py", "convert/test_plan.py"),
    "convert/test_logits.py",
    *("convert/test_calibrate.py", "convert/test_convert.py", "convert/test_fp8.py"),
    *("convert/test_family.py", "convert/test_hf_source.py", "convert/test_hf_refusals.py"),
    *("convert/test_hf.py", "convert/test_mpi.py", "convert/test_resume.py"),
    *("convert/test_torch_dist.py", "convert/test_verification.py", "convert/test_corpus.py"),
    *("convert/test_output.py", "convert/test_types.py", "convert/test_understanding.py"),
    *("convert/test_reward.py", "convert/test_adapter_verification.py", "convert/test_peft.py"),
    *("convert/test_virtual_tokens.py", "engine/test_virtual_tokens.py"),
    "convert/test_tuned_prompts.py",
    *("evaluate/test_real_server.py", "evaluate/test_environment.py", "evaluate/test_answers.py"),
    *("evaluate/test_evaluation.py", "evaluate/test_mt_bench.py", "evaluate/test_redteam.py"),
    "evaluate/test_tfeval.py",
    *("data/test_batch.py", "data/test_stops.py", "data/test_synthesize.py"),
    *("gateway/test_ecosystem.py", "gateway/test_operation.py", "gateway/test_page"),
)
"""Folders and files of tests that start other programs or compute for seconds."""
FAST = (
    *("serve/test_options.py", "serve/test_doctor.py"),
    *("serve/test_probe.py", "serve/test_scratch.py", "serve/test_ports.py"),
)

# Beside busy neighbours OpenMP's threads spin while they wait for each other: with two threads and
# eight busy processes on two cores, transformers took forty times as long, with one six times.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("suite", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("suite")


SERVED = {
    "cpu": ("engine_bf16", "cpu_profile"),
    "tensorrt": ("engine_tensorrt", "standin_profile"),
    "pytorch": ("engine_pytorch", "standin_profile"),
    "vllm": ("engine_vllm", "vllm_profile"),
}
"""Fixtures with the engine and the profile of the shared server, by lane."""
pytest_plugins = ["tests.standins.fixtures", "tests.vllm.fixtures", "tests.reward_fixtures"]
NOT_SLOW = "not slow"
FIRST = ("slurm", "helm", "docs/test_readme.py", "data", "gateway", "docker", "convert")
"""Folders and files that take longest, in the order in which two processes begin them."""
LANE_FOLDERS = ("vllm", "loaders", "containers")
"""Folders of tests that need libraries or programs of their own; `--lane` names the one that is
run."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: compressed ones have the time in them, and processes differ."""
    return argname if isinstance(val, bytes) else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lane", default="cpu", help="lane of the server that tests share")
    parser.addoption("--docs", action="store_true", help="run the pages' slow commands, too")
    parser.addoption("--images", help="folder with a store of images")
    parser.addoption("--image-python", help="Python 3.12 of stand-ins for the images' bases")
    parser.addoption("--clients", help="folder with the environments of other people's clients")
    parser.addoption("--harnesses", help="folder with the environments of evaluation harnesses")
    parser.addoption("--ray", help="folder with an environment that has Ray")


def is_slow(path: Path) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return name.startswith(SLOW) and not name.startswith(FAST)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out slow files before they are imported: some import PyTorch and transformers."""
    for option in ("clients", "harnesses", "ray"):
        if collection_path == ROOT / option and config.getoption(option) is None:
            return True
    if collection_path.name in LANE_FOLDERS and collection_path.parent == ROOT:
        return True if config.option.lane != collection_path.name else None
    is_left_out = config.option.markexpr == NOT_SLOW and collection_path.is_file()
    return True if is_left_out and is_slow(collection_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    run_again_if_triton_ended(item, nextitem)
    return True


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark the tests that `make check` leaves out, and begin with those that take longest."""

    def position(item: pytest.Function) -> int:
        name = item.path.relative_to(ROOT).as_posix()
        return next(
            (place for place, part in enumerate(FIRST) if name.startswith(part)), len(FIRST)
        )

    items.sort(key=position)
    for item in items:
        if is_slow(item.path) or SLOW_FIXTURES.intersection(item.fixturenames):
            item.add_marker(pytest.mark.slow)


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
def served_profile(request: pytest.FixtureRequest) -> Profile:
    """The profile of the lane that the option --lane names."""
    _, profile = SERVED[request.config.option.lane]
    return free_ports(request.getfixturevalue(profile))


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, served_profile: Profile) -> Iterator[ModelServer]:
    """The server of the lane that the option --lane names."""
    engine, _ = SERVED[request.config.option.lane]
    with shared_server(request.getfixturevalue(engine), served_profile) as running:
        yield running
