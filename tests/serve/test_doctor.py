"""`nemotron doctor` on this machine, and in a folder like NVIDIA's container."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemotron_build.profile import Profile, load_profile
from nemotron_serve.doctor import CHECKS, examine
from tests.build.test_tensorrt_lane import H100, enter, profile_file
from tests.standins.container import make_container

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))


def failed(profile: Profile) -> dict[str, str]:
    return {finding.what: finding.text for finding in examine(profile) if not finding.ok}


def test_this_machine_runs_the_cpu_lane(cpu_profile: Profile) -> None:
    assert failed(cpu_profile) == {}


def test_this_machine_has_no_gpus() -> None:
    failures = failed(load_profile("h100-fp8-tp8"))
    assert {"libraries", "Triton", "GPUs"} <= set(failures)
    assert all(": " in text for text in failures.values())  # each says what to do


@pytest.mark.parametrize(
    ("gpus", "version", "keys", "expected"),
    [
        (8, "1.2.1", {}, {}),
        (4, "1.2.1", {}, {"GPUs": "this machine has 4 GPUs, the profile needs 8 on each node"}),
        (8, "1.1.0", {}, {"libraries": "tensorrt-llm 1.1.0 is installed, this lane needs ~=1.2"}),
        (8, "1.2.1", {"triton": "/none"}, {"Triton": "no Triton here [/none/bin/tritonserver]"}),
    ],
)
def test_a_container(
    gpus: int,
    version: str,
    keys: dict[str, Any],
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    container = make_container(tmp_path / "container", gpu=H100, gpus=gpus, version=version)
    enter(container, monkeypatch)
    beside = str(Path(sys.executable).parent)  # mpirun
    monkeypatch.setenv("PATH", os.pathsep.join([beside, container.environment["PATH"]]))
    ports = dict.fromkeys(("http", "grpc", "metrics", "health", "gateway"), 0)
    settings = {"triton": str(container.triton), "ports": ports} | keys
    failures = failed(load_profile(profile_file(tmp_path, "h100-fp8-tp8", **settings)))
    assert set(failures) == set(expected)
    assert all(failures[what].startswith(text) for what, text in expected.items())


def test_a_port_in_use(cpu_profile: Profile) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        ports = cpu_profile.ports.model_copy(update={"grpc": port})
        failures = failed(cpu_profile.model_copy(update={"ports": ports}))
    assert failures["ports"].startswith(f"the grpc port {port} cannot be used")


def test_the_command(engine_bf16: Path) -> None:
    done = subprocess.run(
        [NEMOTRON, "doctor", "--json", "--profile", "h100-fp8-tp8"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert [finding["what"] for finding in json.loads(done.stdout)] == list(CHECKS)
    done = subprocess.run(
        [NEMOTRON, "doctor", str(engine_bf16)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.count("ok  ")) == (0, len(CHECKS))
