"""The whole TensorRT lane: eight real ranks of Triton under a real mpirun.

Stand-ins replace only the GPUs and the backend `tensorrtllm`, behind which the CPU engine runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tritonclient.utils import InferenceServerException

from nemotron_client import Client, Generation, RequestRefused, ServerOverloaded
from nemotron_core.metrics import GENERATED_TOKENS_METRIC, RUNNING_METRIC
from nemotron_serve.server import TritonServer
from tests.build.test_tensorrt_lane import BF16_TP8, H100, profile_file
from tests.serve.wire import ASK, MODELS, last, messages_json, metric, stream, text
from tests.standins.container import make_container
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import WAIT, until, until_written

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
FREE = dict.fromkeys(("http", "grpc", "metrics", "health", "gateway"), 0)
LOG = "triton.log"
AS_ROOT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


@dataclass
class Lane:
    """A running server. The helpers of wire.py use `endpoints`."""

    process: subprocess.Popen[str]
    endpoints: Any

    @property
    def ranks(self) -> list[psutil.Process]:
        processes = psutil.Process(self.process.pid).children(recursive=True)
        return [
            process for process in processes if "--load-model=tensorrt_llm" in process.cmdline()
        ]

    def is_ready(self) -> bool:
        url = f"http://127.0.0.1:{self.endpoints.health}/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=WAIT) as response:
                return bool(response.status == 200)
        except urllib.error.URLError:
            return False


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("container")
    container = make_container(folder / "container", gpu=H100, version="1.2.1")
    path = os.pathsep.join([str(Path(sys.executable).parent), container.environment["PATH"]])
    triton = {"TRITON": str(container.triton)}
    return os.environ | container.environment | {"PATH": path} | AS_ROOT | triton


def built(folder: Path, environment: dict[str, str], checkpoint: Path, **limits: int) -> Path:
    settings = {"triton": environment["TRITON"], "ports": FREE, **BF16_TP8}
    if limits:
        base = {"max_batch_size": 64, "max_seq_len": 4096, "max_num_tokens": 8192}
        settings["limits"] = base | {"max_queue_size": 448, "long_answers": "refuse"} | limits
    profile = profile_file(folder, **settings)
    engine = folder / "engine"
    command = [NEMOTRON, "build", str(checkpoint), "-o", str(engine), "--profile", profile]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return engine


def started(engine: Path, environment: dict[str, str], folder: Path) -> Lane:
    ports = folder / "ports.json"
    process = subprocess.Popen(
        [NEMOTRON, "serve", engine, "--port-file", ports, "--log-file", folder / LOG],
        env=environment | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until_written(ports, process)
    return Lane(process, SimpleNamespace(**json.loads(ports.read_text())))


@pytest.fixture(scope="module")
def lane(
    environment: dict[str, str], checkpoint_tp8: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lane]:
    folder = tmp_path_factory.mktemp("lane")
    running = started(built(folder, environment, checkpoint_tp8), environment, folder)
    try:
        yield running
        if running.process.poll() is not None:
            log = (folder / LOG).read_text()[-4000:]
            pytest.fail(f"the server has ended:\n{running.process.communicate()[0]}\n{log}")
        running.process.send_signal(signal.SIGTERM)
        output, _ = running.process.communicate(timeout=WAIT)
        assert running.process.returncode == 0, output
        assert not list(folder.glob("nemotron-*"))
    finally:
        running.process.terminate()
        running.process.wait(WAIT)


@pytest.mark.parametrize("model", MODELS)
def test_answers(model: str, lane: Lane, answers: list[ExactAnswer]) -> None:
    sample = answers[::24]

    def ask(answer: ExactAnswer) -> list[dict[str, Any]]:
        prompt = messages_json(answer.question.messages)
        return stream(lane, model, messages=prompt, max_tokens=200, stream=True)

    with ThreadPoolExecutor(len(sample)) as pool:
        streams = list(pool.map(ask, sample))
    assert [text(responses) for responses in streams] == [
        answer.question.answer for answer in sample
    ]
    assert {last(responses, "finish_reason") for responses in streams} == {"stop"}
    counts = [
        sum(len(response["output_token_ids"].ravel()) for response in responses)
        for responses in streams
    ]
    assert counts == [last(responses, "num_output_tokens") for responses in streams]


def test_the_ranks(lane: Lane) -> None:
    assert len(lane.ranks) == 7
    assert lane.is_ready()
    ports = {lane.endpoints.http, lane.endpoints.grpc, lane.endpoints.metrics}
    for rank in lane.ranks:
        assert not [
            connection
            for connection in rank.net_connections()
            if connection.laddr and connection.laddr.port in ports
        ]


def test_length(lane: Lane, answers: list[ExactAnswer]) -> None:
    prompt = messages_json(answers[0].question.messages)
    responses = stream(lane, messages=prompt, max_tokens=3)
    assert last(responses, "finish_reason") == "length"
    assert last(responses, "num_output_tokens") == 3


def test_a_stop_string_is_cut_and_frees_the_engine(lane: Lane, answers: list[ExactAnswer]) -> None:
    longest = max((answer.question.answer for answer in answers), key=len)
    answer = next(answer for answer in answers if answer.question.answer == longest)
    stop = longest[20:26]
    responses = stream(
        lane, messages=messages_json(answer.question.messages), max_tokens=200, stop_words=stop
    )
    assert text(responses) == longest[: longest.index(stop)]
    assert last(responses, "stop_reason") == stop
    wait_until_idle(lane)


def wait_until_idle(lane: Lane) -> None:
    until(lambda: not metric(lane, f'{RUNNING_METRIC}{{model="ensemble"}}'))


def test_several_answers(lane: Lane, answers: list[ExactAnswer]) -> None:
    answer = answers[3]
    prompt = messages_json(answer.question.messages)
    responses = stream(lane, messages=prompt, max_tokens=200, num_return_sequences=3, stream=True)
    for sequence in range(3):
        sequence_responses = [
            part for part in responses if part["sequence_index"].ravel()[0] == sequence
        ]
        assert text(sequence_responses) == answer.question.answer
        assert last(sequence_responses, "finish_reason") == "stop"


@pytest.mark.parametrize(
    "fields", [{"temperature": 3.0}, {"temperature": 3.0, "top_k": 50}, {"temperature": 0.0}]
)
def test_sampling_means_the_same_as_on_the_cpu_lane(
    fields: dict[str, Any], lane: Lane, server: TritonServer
) -> None:
    prompt = {"text_input": "<extra_id_1>Go", "end_id": 0, "max_tokens": 30}
    sampled = text(stream(lane, **prompt, seed=7, **fields))
    assert sampled == text(stream(server, **prompt, seed=7, **fields))
    greedy = text(stream(lane, **prompt))
    assert (sampled == greedy) == (fields == {"temperature": 0.0})


def test_a_client_that_goes_frees_the_engine(lane: Lane) -> None:
    url = f"127.0.0.1:{lane.endpoints.grpc}"
    with Client(url) as client:
        pieces = client.stream_complete("<extra_id_1>Count", Generation(max_tokens=3000, end_id=0))
        next(pieces)
        pieces.close()
        wait_until_idle(lane)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beam_width": 4}, "beam_width is not on the engine of the lane tensorrt"),
        ({"return_context_logits": True}, "return_context_logits is not on the engine"),
        ({"lora_task_id": 1}, "lora_task_id is not on the engine"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str, lane: Lane) -> None:
    with pytest.raises(InferenceServerException, match=message):
        stream(lane, messages=ASK, max_tokens=5, **fields)


def test_words_become_tokens(lane: Lane) -> None:
    fields = {"bad_words": ["light"], "embedding_bias_words": ["sky"]}
    responses = stream(lane, messages=ASK, max_tokens=5, embedding_bias_weights=2.0, **fields)
    assert last(responses, "finish_reason") == "length"
    with pytest.raises(InferenceServerException, match="1 embedding_bias_words have 2 weights"):
        stream(lane, messages=ASK, max_tokens=5, embedding_bias_weights=[1.0, 2.0], **fields)


def test_the_client_is_refused_by_type(lane: Lane) -> None:
    with (
        Client(f"127.0.0.1:{lane.endpoints.grpc}") as client,
        pytest.raises(RequestRefused, match="are more than the 4096 this model holds"),
    ):
        client.complete("Hi", Generation(max_tokens=5000))


def test_metrics(lane: Lane) -> None:
    name = f'{GENERATED_TOKENS_METRIC}{{model="ensemble"}}'
    stream(lane, messages=ASK, max_tokens=1, stream=True)
    until(lambda: metric(lane, name) > 0)
    before = metric(lane, name)
    responses = stream(lane, messages=ASK, max_tokens=200, stream=True)
    counted = before + last(responses, "num_output_tokens")
    until(lambda: metric(lane, name) >= counted)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that have a path in this folder on their command line."""
    processes = psutil.process_iter(["cmdline"])
    return [
        process for process in processes if str(folder) in " ".join(process.info["cmdline"] or ())
    ]


def test_a_full_queue_and_a_dead_rank(
    environment: dict[str, str], checkpoint_tp8: Path, tmp_path: Path
) -> None:
    engine = built(tmp_path, environment, checkpoint_tp8, max_batch_size=1, max_queue_size=1)
    running = started(engine, environment, tmp_path)
    try:
        with Client(f"127.0.0.1:{running.endpoints.grpc}") as client:
            endless = Generation(max_tokens=4000, end_id=0)
            streams = [client.stream_complete("<extra_id_1>Count", endless) for _ in range(2)]
            next(streams[0])
            second = ThreadPoolExecutor(1).submit(next, streams[1], None)
            until(lambda: metric(running, f'{RUNNING_METRIC}{{model="ensemble"}}') >= 2)
            with pytest.raises(ServerOverloaded):
                client.complete("Hi")
            running.ranks[0].kill()
            output, _ = running.process.communicate(timeout=WAIT)
            assert running.process.returncode == 1
            assert "Triton ended with status -9" in output
            assert "a rank failed: mpirun ended with status" in output
            assert not running.is_ready()
            second.exception(WAIT)
        until(lambda: not processes_of(tmp_path))
        assert not list(tmp_path.glob("nemotron-*"))
    finally:
        running.process.terminate()
        running.process.wait(WAIT)
