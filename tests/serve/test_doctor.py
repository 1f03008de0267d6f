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

from nemotron_build.lanes.deployment import Deployment
from nemotron_build.profile import Profile, load_profile
from nemotron_serve.doctor import CHECKS, examine
from nemotron_serve.exposure import exposure
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


@pytest.mark.parametrize(
    ("version", "release", "address", "is_safe"),
    [
        ("2.60.0", None, "0.0.0.0", True),
        ("2.59.1", None, "0.0.0.0", False),
        ("2.59.1", None, "127.0.0.1", True),
        ("2.59.1", None, "::1", True),
        (None, "25.08", "::", True),
        (None, "25.06", "10.0.0.1", False),
        (None, None, "models.example", False),
        ("later", None, "0.0.0.0", False),
    ],
)
def test_an_old_triton_serves_only_this_machine(
    version: str | None,
    release: str | None,
    address: str,
    is_safe: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if version is not None:
        (tmp_path / "TRITON_VERSION").write_text(version + "\n")
    monkeypatch.delenv("NVIDIA_TRITON_SERVER_VERSION", raising=False)
    if release is not None:
        monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", release)
    deployment = Deployment(shared_memory=0, triton=tmp_path)
    warning = exposure(deployment, address)
    assert (warning is None) == is_safe
    assert warning is None or "before 25.08 (2.60) it lacks security fixes" in warning


def test_the_wheels_triton_serves_only_this_machine(cpu_profile: Profile) -> None:
    assert "security" in failed(cpu_profile.model_copy(update={"address": "0.0.0.0"}))
    installed = "nvidia-pytriton==0.7.0"  # 2.51.0, as its server says on /v2
    assert installed in (Path(__file__).parents[2] / "pyproject.toml").read_text()
