"""`nemotron serve` as a process: it becomes ready, drains, refuses, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from nemotron_build.engine_folder import ENGINE_NAME, open_engine
from nemotron_build.profile import profiles_folder
from nemotron_client import Client, ClientError, Generation, Piece
from nemotron_serve.exposure import WHEEL_VERSION
from tests.waiting import WAIT, until_written

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
FREE_PORTS = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health", "gateway")]
PROMPT = "<extra_id_1>Count"


@contextmanager
def serving(
    engine: Path, tmp_path: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    ports = tmp_path / "ports.json"
    command = [NEMOTRON, "serve", str(engine), *FREE_PORTS, "--port-file", str(ports), *options]
    (tmp_path / "scratch").mkdir()
    short_path(tmp_path).symlink_to(tmp_path / "scratch")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(short_path(tmp_path))},
    )
    try:
        until_written(ports, process)
        yield process, json.loads(ports.read_text())
    finally:
        process.kill()
        process.communicate()
        short_path(tmp_path).unlink()


def short_path(tmp_path: Path) -> Path:
    """Return another path of a server's temporary folder, short enough for sockets in it."""
    return Path("/tmp") / f"n-{hashlib.sha256(bytes(tmp_path)).hexdigest()[:12]}"


def ask_gateway(ports: dict[str, int], **more: int) -> http.client.HTTPResponse:
    """Start a stream over HTTP, and return it after its first event."""
    connection = http.client.HTTPConnection("127.0.0.1", ports["gateway"], timeout=WAIT)
    body = {"model": "nemotron-4-340b-instruct", "prompt": PROMPT, "stream": True} | more
    headers = {"Content-Type": "application/json", "Connection": "close"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    return response


@contextmanager
def answering(
    engine: Path, tmp_path: Path, *, tokens: int
) -> Iterator[tuple[subprocess.Popen[str], Client, Iterator[Piece], http.client.HTTPResponse]]:
    """Yield a server with a client and two answers of so many tokens that have begun.

    One answer is sent over gRPC, the other by the gateway.
    """
    with (
        serving(engine, tmp_path) as (process, ports),
        Client(f"127.0.0.1:{ports['grpc']}") as client,
    ):
        pieces = client.stream_complete(PROMPT, Generation(max_tokens=tokens, end_id=0))
        assert next(pieces).num_output_tokens < tokens
        yield process, client, pieces, ask_gateway(ports, max_tokens=tokens, min_tokens=tokens)


def until_draining(process: subprocess.Popen[str]) -> None:
    """Wait until a server says that it drains."""
    assert process.stdout
    assert any("draining" in line for line in iter(process.stdout.readline, ""))


def shared_memory(process: subprocess.Popen[str]) -> Callable[[], list[Path]]:
    """Return a function that lists the shared memory of the Triton below `process`."""
    children = psutil.Process(process.pid).children()
    command_lines = "\n".join(word for child in children for word in child.cmdline())
    (prefix,) = re.findall("shm-region-prefix-name=(.*)", command_lines)
    return lambda: list(Path("/dev/shm").glob(f"{prefix}*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_a_running_answer_finish(
    number: int, engine_bf16: Path, tmp_path: Path
) -> None:
    with answering(engine_bf16, tmp_path, tokens=3000) as (process, client, pieces, over_http):
        left_behind = shared_memory(process)
        assert left_behind()
        process.send_signal(number)
        until_draining(process)
        with pytest.raises(ClientError, match="server shutting down"):
            client.complete(PROMPT)
        rest = list(pieces)
        assert rest[-1].finish_reason == "length"
        assert rest[-1].num_output_tokens == 3000
        assert over_http.read().decode().endswith("data: [DONE]\n\n")
        output, _ = process.communicate(timeout=WAIT)
        assert process.returncode == 0
    assert output.splitlines()[-1] == "stopped"
    assert not (tmp_path / "ports.json").exists()
    assert list((tmp_path / "scratch").iterdir()) == []
    assert left_behind() == []


def step(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return a server with all of its processes, which Slurm signals together."""
    server = psutil.Process(process.pid)
    return [server, *server.children(recursive=True)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_every_process_drains_too(
    number: int, engine_bf16: Path, tmp_path: Path
) -> None:
    with answering(engine_bf16, tmp_path, tokens=600) as (process, _client, pieces, over_http):
        processes = step(process)
        assert {"tritonserver", "triton_python_backend_stub"} <= {one.name() for one in processes}
        for one in processes:
            one.send_signal(number)
        until_draining(process)
        process.send_signal(signal.SIGTERM)  # a batch system may send another one
        assert list(pieces)[-1].num_output_tokens == 600
        assert over_http.read().decode().endswith("data: [DONE]\n\n")
        process.communicate(timeout=WAIT)
        assert process.returncode == 0
        _gone, alive = psutil.wait_procs(processes, timeout=WAIT)
        assert alive == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_killed_server_leaves_what_doctor_removes(engine_bf16: Path, tmp_path: Path) -> None:
    with serving(engine_bf16, tmp_path) as (process, _ports):
        left_behind = shared_memory(process)
        processes = step(process)
        process.kill()
        process.wait()
        _gone, alive = psutil.wait_procs(processes, timeout=WAIT)
        assert alive == []
        # The shared memory is there too, unless another server has started on this machine since.
        (folder,) = (tmp_path / "scratch").iterdir()
        clean = [NEMOTRON, "doctor", "--clean"]
        environment = os.environ | {"TMPDIR": str(short_path(tmp_path))}
        done = subprocess.run(clean, capture_output=True, text=True, check=True, env=environment)
        assert f"removed {short_path(tmp_path) / folder.name}" in done.stdout
        assert not folder.exists()
        assert left_behind() == []


def test_a_temporary_folder_without_programs_is_named(engine_bf16: Path) -> None:
    inside = 'mount -t tmpfs -o noexec none /mnt && TMPDIR=/mnt exec "$@"'
    server = [NEMOTRON, "serve", str(engine_bf16), *FREE_PORTS]
    command = ["unshare", "--mount", "sh", "-c", inside, "sh", *server]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT)
    assert done.returncode == 1
    assert "it is mounted noexec" in done.stderr
    assert "set TMPDIR to a folder where programs may run" in done.stderr


def test_it_says_how_to_talk_to_it(engine_bf16: Path, tmp_path: Path) -> None:
    with serving(engine_bf16, tmp_path) as (process, ports):
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=WAIT)
    assert "is ready; Ctrl-C drains and stops." in output
    assert f"http://127.0.0.1:{ports['gateway']}/v1" in output
    assert f"nemotron chat --url 127.0.0.1:{ports['grpc']} 'Who are you?'" in output
    assert f"curl http://127.0.0.1:{ports['gateway']}/v1/chat/completions -H" in output
    assert "model nemotron-4-340b-instruct\n" in output
    assert "4,096 tokens of a prompt and its answer; 64 requests at once, 448 more wait" in output


def test_it_listens_on_ipv6_alone(engine_bf16: Path, tmp_path: Path) -> None:
    question = "Who are you?"
    with (
        serving(engine_bf16, tmp_path, "--address=::1") as (process, ports),
        Client(f"[::1]:{ports['grpc']}") as client,
    ):
        assert client.complete(PROMPT, Generation(max_tokens=5)).num_output_tokens
        urls = [
            (ports["health"], "/health/ready"),
            (ports["http"], "/v2"),
            (ports["metrics"], "/metrics"),
            (ports["gateway"], "/health/ready"),
        ]
        answers = []
        for port, path in urls:
            with urllib.request.urlopen(f"http://[::1]:{port}{path}", timeout=WAIT) as response:
                answers.append(response.read())
        assert json.loads(answers[1])["version"].startswith(WHEEL_VERSION)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=WAIT)
        assert process.returncode == 0
    assert f"nemotron chat --url '[::1]:{ports['grpc']}' '{question}'" in output


def test_a_second_interrupt_ends_at_once(engine_bf16: Path, tmp_path: Path) -> None:
    with (
        serving(engine_bf16, tmp_path, "--no-gateway") as (process, ports),
        Client(f"127.0.0.1:{ports['grpc']}") as client,
    ):
        assert ports["gateway"] is None
        pieces = client.stream_complete(PROMPT, Generation(max_tokens=4000, end_id=0))
        next(pieces)
        left_behind = shared_memory(process)
        process.send_signal(signal.SIGTERM)
        until_draining(process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT)
        assert process.returncode == 130
    assert list((tmp_path / "scratch").iterdir()) == []
    assert left_behind() == []


def health(ports: dict[str, int], what: str) -> int:
    """Return the HTTP status of a health check, or 0 if no server listens."""
    url = f"http://127.0.0.1:{ports['health']}/health/{what}"
    try:
        with urllib.request.urlopen(url, timeout=WAIT) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except urllib.error.URLError:
        return 0


def test_health_while_it_serves_and_drains(engine_bf16: Path, tmp_path: Path) -> None:
    with (
        serving(engine_bf16, tmp_path) as (process, ports),
        Client(f"127.0.0.1:{ports['grpc']}") as client,
    ):
        assert [health(ports, what) for what in ("live", "ready", "none")] == [200, 200, 404]
        pieces = client.stream_complete(PROMPT, Generation(max_tokens=3000, end_id=0))
        next(pieces)
        process.send_signal(signal.SIGTERM)
        until_draining(process)
        assert [health(ports, what) for what in ("live", "ready")] == [200, 503]
        assert list(pieces)[-1].finish_reason == "length"
        process.communicate(timeout=WAIT)
        assert health(ports, "live") == 0


class Collector(BaseHTTPRequestHandler):
    """An OpenTelemetry collector for OTLP over HTTP."""

    spans: ClassVar[queue.Queue[bytes]] = queue.Queue()

    def do_POST(self) -> None:
        self.spans.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_traces_go_to_a_collector(engine_bf16: Path, tmp_path: Path) -> None:
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    try:
        with (
            serving(engine_bf16, tmp_path, "--traces", url) as (_process, ports),
            Client(f"127.0.0.1:{ports['grpc']}") as client,
        ):
            client.complete(PROMPT, Generation(max_tokens=5))
            names: set[str] = set()
            while not {"ensemble", "tensorrt_llm", "postprocessing"} <= names:
                spans = Collector.spans.get(timeout=WAIT)
                names |= {
                    name
                    for name in ("ensemble", "tensorrt_llm", "postprocessing")
                    if name.encode() in spans
                }
    finally:
        collector.shutdown()
        collector.server_close()


def refused(arguments: list[str], tmp_path: Path) -> str:
    done = subprocess.run(
        [NEMOTRON, "serve", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_port_in_use(engine_bf16: Path, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        error = refused([str(engine_bf16), *FREE_PORTS, "--grpc-port", str(port)], tmp_path)
    assert f"the grpc port {port} cannot be used: " in error
    assert f", process {os.getpid()} listens there" in error
    assert "or serve with --grpc-port" in error


def test_an_engine_of_another_lane(engine_bf16: Path, tmp_path: Path) -> None:
    other = shutil.copytree(engine_bf16, tmp_path / "other")
    record = json.loads((other / ENGINE_NAME).read_text()) | {"lane": "abacus"}
    (other / ENGINE_NAME).write_text(json.dumps(record))
    assert "an engine of the lane 'abacus'" in refused([str(other), *FREE_PORTS], tmp_path)


def test_an_engine_that_does_not_start_says_why(engine_bf16: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(engine_bf16, tmp_path / "broken")
    size = (broken / "openvino_model.xml").stat().st_size
    (broken / "openvino_model.xml").write_text("x" * size)
    error = refused([str(broken), *FREE_PORTS], tmp_path)
    assert error.startswith("nemotron: the engine's process ended with status 1: ")
    assert f"[{broken}]: build the engine again, or give the machine more memory" in error
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_triton_that_does_not_start_says_why(engine_bf16: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    shipped = (profiles_folder() / "cpu.yaml").read_text()
    own.write_text(shipped + "triton_args: ['--cache-config=no_such_cache,size=1']\n")
    error = refused([str(engine_bf16), *FREE_PORTS, "--profile", str(own)], tmp_path)
    assert "Triton ended with status" in error
    assert "no_such_cache" in error
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


def test_the_configurations_are_what_triton_parses(engine_bf16: Path, tmp_path: Path) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    from nemotron_serve.repository import ServerFiles, render_repository

    record = open_engine(engine_bf16)
    files = ServerFiles(tmp_path, tmp_path / "engine.sock")
    render_repository(engine_bf16, record, record.profile, files)
    configs = {
        path.parent.name: text_format.Parse(path.read_text(), ModelConfig())
        for path in files.models.glob("*/config.pbtxt")
    }
    assert len(configs) == 6
    assert all(name == config.name for name, config in configs.items())
    for name in configs.keys() - {"ensemble"}:
        parameters = {key: value.string_value for key, value in configs[name].parameters.items()}
        assert parameters["engine_socket"] == str(files.engine_socket)
        assert parameters["tokenizer_path"] == str(engine_bf16 / "tokenizer.model")
        assert len(configs[name].instance_group) == configs[name].instance_group[0].count == 1
        assert not configs[name].HasField("dynamic_batching")
    # Every tensor of the ensemble's maps is one of the step's model.
    for step in configs["ensemble"].ensemble_scheduling.step:
        model = configs[step.model_name]
        assert set(step.input_map) <= {tensor.name for tensor in model.input}
        assert set(step.output_map) <= {tensor.name for tensor in model.output}
