"""The whole TensorRT lane: `nemotron build`, `nemotron serve`, real Triton, real MPI.

Stand-ins replace only the GPUs and TensorRT-LLM, behind which the CPU engine runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from tests.build.test_tensorrt_lane import BF16_TP8, H100, profile_file
from tests.serve.wire import ASK, MODELS, last, messages_json, stream, text
from tests.standins.container import make_container
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import WAIT, until, until_written

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
FREE = dict.fromkeys(("http", "grpc", "metrics", "health", "gateway"), 0)
AS_ROOT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
DEADLY = 1313
"""Number of `max_tokens` at which the stand-in for the library dies."""


def container_environment(folder: Path, version: str) -> dict[str, str]:
    container = make_container(folder / "container", gpu=H100, version=version)
    path = os.pathsep.join([str(Path(sys.executable).parent), container.environment["PATH"]])
    triton = {"TRITON": str(container.triton)}
    return os.environ | container.environment | {"PATH": path} | AS_ROOT | triton


def built(folder: Path, environment: dict[str, str], checkpoint: Path, profile: str) -> Path:
    """Build an engine for 8 GPUs of one node."""
    settings = {"triton": environment["TRITON"], "ports": FREE, **BF16_TP8}
    path = profile_file(folder, profile, **settings)
    engine = folder / "engine"
    command = [NEMOTRON, "build", str(checkpoint), "-o", str(engine), "--profile", path]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return engine


@contextmanager
def served(engine: Path, environment: dict[str, str], folder: Path) -> Iterator[Any]:
    """Serve an engine, and drain at the end. The helpers of wire.py use `endpoints`."""
    ports = folder / "ports.json"
    with subprocess.Popen(
        [NEMOTRON, "serve", engine, "--port-file", ports, "--log-file", folder / "server.log"],
        env=environment | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            until_written(ports, process)
            yield SimpleNamespace(endpoints=SimpleNamespace(**json.loads(ports.read_text())))
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=WAIT)
            assert process.returncode == 0, output
            assert not list(folder.glob("nemotron-*"))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return container_environment(tmp_path_factory.mktemp("container"), "1.2.1")


@pytest.fixture(scope="module")
def engine(
    environment: dict[str, str], checkpoint_tp8: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    return built(folder, environment, checkpoint_tp8, "h200-bf16-tp8")


@pytest.fixture(scope="module")
def lane(
    engine: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    with served(engine, environment, tmp_path_factory.mktemp("lane")) as running:
        yield running


@pytest.mark.parametrize("model", MODELS)
def test_answers(model: str, lane: Any, answers: list[ExactAnswer]) -> None:
    for exact in answers[::60]:
        prompt = messages_json(exact.question.messages)
        responses = stream(lane, model, messages=prompt, max_tokens=200, stream=True)
        assert text(responses) == exact.question.answer
        assert last(responses, "finish_reason") == "stop"


def test_sampling_means_the_same_as_on_the_cpu_lane(lane: Any, server: Any) -> None:
    fields = {"messages": ASK, "max_tokens": 60, "seed": 7, "temperature": 1.5, "top_p": 1.0}
    sampled = text(stream(lane, **fields))
    assert sampled == text(stream(server, **fields))
    assert sampled != text(stream(lane, messages=ASK, max_tokens=60))


def test_what_the_engine_lacks_is_refused_by_name(lane: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"bad.words"):
        stream(lane, messages=ASK, max_tokens=5, bad_words=["no"])
    fields = {"embedding_bias_words": ["sky"], "embedding_bias_weights": [2.0]}
    assert last(stream(lane, messages=ASK, max_tokens=5, **fields), "finish_reason") == "length"


def test_a_library_that_dies_is_started_again(lane: Any, answers: list[ExactAnswer]) -> None:
    with pytest.raises(InferenceServerException):
        stream(lane, messages=ASK, max_tokens=DEADLY)
    exact = answers[0]
    fields = {"messages": messages_json(exact.question.messages), "max_tokens": 200}

    def answers_again() -> bool:
        try:
            return text(stream(lane, **fields)) == exact.question.answer
        except InferenceServerException:
            return False

    until(answers_again, poll_seconds=0.2)


def test_the_processes_of_mpirun_are_its_ranks(
    engine: Path, environment: dict[str, str], tmp_path: Path, answers: list[ExactAnswer]
) -> None:
    """The first one serves, and its exit code is that of the command."""
    exact = next(answer for answer in answers if len(answer.question.messages) == 1)
    command = f"nemotron chat '{exact.question.messages[0].content}'; exit 3"
    done = subprocess.run(
        [*("mpirun", "-n", "8", NEMOTRON, "serve", str(engine)), "--", "bash", "-c", command],
        env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert exact.question.answer in done.stdout, done.stderr
    assert done.returncode == 3
    assert not list(tmp_path.glob("nemotron-*"))
