"""Parts of a running server that are killed or stopped: clients get an end, the server comes back.

A real `nemotron serve` with the tiny engine and its gateway; everything else is NVIDIA's and ours.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serve.wire import ASK
from tests.waiting import WAIT, until, until_written

STREAMS = 20
ENDLESS = {"text_input": "<extra_id_1>Go", "end_id": 0, "max_tokens": 4000, "stream": True}
STUBS = ("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls", "generate")
TEXT_MODELS = ("ensemble", "tensorrt_llm_bls", "generate")


@dataclass
class Served:
    """A running `nemotron serve` and its addresses."""

    process: psutil.Process
    ports: dict[str, Any]

    def descendant(self, part: str) -> psutil.Process:
        """Return the process of this server whose command line contains `part`."""
        (match,) = [
            process
            for process in self.process.children(recursive=True)
            if part in " ".join(process.cmdline())
        ]
        return match

    def ready(self, port: str = "health") -> bool:
        connection = http.client.HTTPConnection(self.ports["address"], self.ports[port], timeout=30)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def answer(self, model: str) -> str:
        """Return the model's answer to a short question, or "" if it has none now."""
        connection = http.client.HTTPConnection(
            self.ports["address"], self.ports["http"], timeout=30
        )
        body = {"messages": ASK, "max_tokens": 40}
        try:
            connection.request("POST", f"/v2/models/{model}/generate", json.dumps(body))
            response = json.loads(connection.getresponse().read())
            return str(response.get("text_output", ""))
        except (OSError, http.client.HTTPException, ValueError):
            return ""
        finally:
            connection.close()


@pytest.fixture(scope="module")
def served(engine_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("failures")
    port_file, log = folder / "ports.json", folder / "server.log"
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health", "gateway")]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "nemotron_cli", "serve", str(engine_bf16)),
            *(*ports, f"--port-file={port_file}", f"--log-file={log}"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        until_written(port_file, process)
        yield Served(psutil.Process(process.pid), json.loads(port_file.read_text()))
    finally:
        process.terminate()
        process.wait(WAIT)


@dataclass
class Stream:
    """A client of a streaming model, in a thread of its own."""

    served: Served
    model: str
    max_tokens: int = 4000
    began: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    text: bytes = b""

    def start(self) -> Stream:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def _run(self) -> None:
        ports = self.served.ports
        connection = http.client.HTTPConnection(ports["address"], ports["http"], timeout=WAIT)
        try:
            connection.request(
                "POST",
                f"/v2/models/{self.model}/generate_stream",
                json.dumps(ENDLESS | {"max_tokens": self.max_tokens}),
            )
            response = connection.getresponse()
            while data := response.read1():
                self.text += data
                self.began.set()
        except (OSError, http.client.HTTPException):
            """The connection was closed, which is an end too."""
        finally:
            self.ended.set()
            self.began.set()
            connection.close()


def streams_of(served: Served, model: str) -> list[Stream]:
    """Return streams that have all begun."""
    streams = [Stream(served, model).start() for _ in range(STREAMS)]
    assert all(stream.began.wait(WAIT) for stream in streams)
    return streams


def assert_all_end_and_the_server_answers(served: Served, streams: list[Stream]) -> None:
    assert all(stream.ended.wait(WAIT) for stream in streams)
    until(served.ready)
    for model in TEXT_MODELS:
        until(lambda model=model: "tiny Nemotron" in served.answer(model))
    until(lambda: served.ready("gateway"))


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_engine_fails_its_requests_and_is_started_again_beside_triton(
    served: Served, model: str, number: signal.Signals
) -> None:
    streams = streams_of(served, model)
    triton = served.descendant("bin/tritonserver")
    engine = served.descendant("nemotron_engine")
    engine.send_signal(number)
    until(lambda: not served.ready())
    assert_all_end_and_the_server_answers(served, streams)
    assert served.descendant("bin/tritonserver") == triton
    assert served.descendant("nemotron_engine") != engine
    assert not engine.is_running()
    for stream in streams:
        assert b"engine failed: the engine has ended" in stream.text


@pytest.mark.parametrize("stub", STUBS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_model_makes_triton_start_again_beside_the_engine(
    served: Served, stub: str, number: signal.Signals
) -> None:
    model = "tensorrt_llm_bls" if stub in ("tensorrt_llm_bls", "generate") else "ensemble"
    streams = streams_of(served, model)
    engine = served.descendant("nemotron_engine")
    triton = served.descendant("bin/tritonserver")
    served.descendant(f"/models/{stub}/").send_signal(number)
    assert_all_end_and_the_server_answers(served, streams)
    assert served.descendant("nemotron_engine") == engine
    assert served.descendant("bin/tritonserver") != triton


def test_a_killed_gateway_is_started_again_on_its_port(served: Served) -> None:
    gateway = served.descendant("nemotron_cli gateway")
    gateway.kill()
    until(lambda: served.ready("gateway"))
    assert served.descendant("nemotron_cli gateway") != gateway


def test_a_removed_socket_is_a_lost_engine(served: Served) -> None:
    engine = served.descendant("nemotron_engine")
    command = engine.cmdline()
    Path(command[command.index("--socket") + 1]).unlink()
    until(lambda: not engine.is_running())
    until(served.ready)
    until(lambda: "tiny Nemotron" in served.answer("ensemble"))


def test_ctrl_c_at_a_pipeline_loses_no_answer(engine_bf16: Path, tmp_path: Path) -> None:
    """The terminal sends SIGINT to all of `serve | tee`: what serve prints then has no reader."""
    port_file, output = tmp_path / "ports.json", tmp_path / "output"
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health")]
    options = [*ports, "--no-gateway", f"--port-file={port_file}"]
    serve = [sys.executable, "-m", "nemotron_cli", "serve", str(engine_bf16), *options]
    process = subprocess.Popen(
        ["bash", "-c", f"{shlex.join(serve)} | tee {output}; exit ${{PIPESTATUS[0]}}"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    until_written(port_file, process)
    served = Served(psutil.Process(process.pid), json.loads(port_file.read_text()))
    streams = [Stream(served, model, 300).start() for model in ("ensemble", "tensorrt_llm_bls")]
    assert all(stream.began.wait(WAIT) for stream in streams)
    os.killpg(process.pid, signal.SIGINT)
    assert all(stream.ended.wait(WAIT) for stream in streams)
    process.wait(WAIT)
    for stream in streams:
        assert b'"finish_reason":"length"' in stream.text.splitlines()[-2]


def test_what_killed_servers_leave_is_removed_by_the_next_start(
    engine_bf16: Path, tmp_path: Path
) -> None:
    from nemotron_serve.scratch import remove_leftovers, scratch_folder

    program = """
import os, sys
from pathlib import Path
from nemotron_serve.scratch import scratch_folder, shared_memory_prefix
with scratch_folder() as folder:
    Path("/dev/shm", shared_memory_prefix(folder) + "region").write_bytes(b"x")
    print(folder, flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    left = Path(done.stdout.strip())
    region = Path("/dev/shm", f"{left.name}-region")
    assert left.is_dir()
    assert region.exists()
    with scratch_folder() as alive:
        remove_leftovers()
        assert alive.is_dir()
    assert not left.exists()
    assert not region.exists()
