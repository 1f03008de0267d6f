"""How a server starts, and how a start fails."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from nemotron_build.engine_folder import open_engine
from nemotron_build.profile import Profile
from nemotron_core.errors import NemotronError
from nemotron_serve.model_server import ModelServer
from tests.waiting import WAIT, until

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
FREE_PORTS = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health", "gateway")]


def test_the_engine_asks_neither_a_proxy_nor_the_current_folder(
    engine_bf16: Path, cpu_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (tmp_path / "openvino.py").write_text("raise SystemExit('of the current folder')")
    monkeypatch.chdir(tmp_path)
    with ModelServer(engine_bf16, cpu_profile) as server:
        endpoints = server.endpoints
        assert len({endpoints.http, endpoints.grpc, endpoints.metrics}) == 3
    assert server.triton.process.returncode == -signal.SIGKILL  # it had not crashed


def test_the_models_of_a_clone_without_empty_folders(
    engine_bf16: Path, cpu_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemotron_serve import repository
    from nemotron_serve.repository import models_folder

    clone = shutil.copytree(models_folder(), tmp_path / "clone")
    for folder in clone.glob("*/1"):
        if not any(folder.iterdir()):
            folder.rmdir()
    monkeypatch.setattr(repository, "resource", lambda *_: clone)
    record = open_engine(engine_bf16)
    files = repository.ServerFiles(tmp_path, tmp_path / "engine.sock")
    repository.render_repository(engine_bf16, record, record.profile, files)
    assert all((model / "1").is_dir() for model in files.models.iterdir())


@pytest.mark.parametrize("part", ["nemotron_engine", "tritonserver"])
def test_a_signal_before_it_is_ready_ends_it_at_once(
    part: str, engine_bf16: Path, tmp_path: Path
) -> None:
    process = psutil.Popen(
        [NEMOTRON, "serve", str(engine_bf16), *FREE_PORTS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )

    def parts() -> list[psutil.Process]:
        return [child for child in process.children() if part in " ".join(child.cmdline()[:3])]

    until(parts)
    (stuck,) = parts()
    stuck.suspend()  # so that the server is never ready
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert "is ready" not in output
    assert not stuck.is_running()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "verb"),
    [("--log-file", "write"), ("--port-file", "write"), ("--gateway-settings", "read")],
)
def test_a_file_that_cannot_be_used(
    option: str, verb: str, engine_bf16: Path, tmp_path: Path
) -> None:
    path = tmp_path / "none" / "file"
    done = subprocess.run(
        [NEMOTRON, "serve", str(engine_bf16), *FREE_PORTS, "--no-gateway", option, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr == f"nemotron: cannot {verb}: No such file or directory [{path}]\n"
    assert list(tmp_path.iterdir()) == []


def test_no_two_ports_are_the_same(engine_bf16: Path, cpu_profile: Profile) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ports = cpu_profile.ports.model_copy(update={"http": port, "metrics": port})
    with (
        pytest.raises(NemotronError, match=f"the metrics port {port} cannot be used"),
        ModelServer(engine_bf16, cpu_profile.model_copy(update={"ports": ports})),
    ):
        pass
