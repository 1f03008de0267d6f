"""The systemd unit and the compose files, as far as they can be checked without starting them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from nemotron_build.profile import load_profile, shipped_profiles
from nemotron_cli.main import app
from nemotron_serve.triton import EXIT_SECONDS
from tests.tools import debian_program

BUILD = Path(__file__).parents[2] / "build"
UNIT = BUILD / "systemd" / "nemotron.service"
COMPOSE = BUILD / "docker" / "compose.yaml"
LONGEST_DRAIN = max(load_profile(name).timeouts.drain for name in shipped_profiles())


def options_of(verb: str) -> set[str]:
    command: Any = typer.main.get_command(app)
    return {name for option in command.get_command(None, verb).params for name in option.opts}


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.+)$", UNIT.read_text(), re.MULTILINE)
    return str(value)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    program, verb, *_ = setting("ExecStart").split()
    assert verb == "serve"
    here = shutil.copy(UNIT, tmp_path)
    installed = str(Path(sys.executable).with_name("nemotron"))
    Path(here).write_text(UNIT.read_text().replace(program, installed))
    command = [debian_program("systemd-analyze"), "verify", "--man=no", here]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "nemotron" in line]
    assert (done.returncode, ours) == (0, []), done.stderr
    Path(here).write_text(UNIT.read_text())
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "nemotron is not executable" in done.stderr  # so it does look


@pytest.mark.parametrize("seconds", [int(setting("TimeoutStopSec"))])
def test_a_stop_lasts_longer_than_a_drain(seconds: int) -> None:
    assert seconds > LONGEST_DRAIN + 2 * EXIT_SECONDS
    compose = yaml.safe_load(COMPOSE.read_text())["services"]["server"]
    assert compose["stop_grace_period"] == f"{seconds // 60}m"


def test_what_compose_runs() -> None:
    server = yaml.safe_load(COMPOSE.read_text())["services"]["server"]
    verb, _engine, *options = server["command"]
    assert server["tmpfs"] == ["/tmp:exec"]  # Docker and Podman mount it noexec otherwise
    assert {option.partition("=")[0] for option in options} <= options_of(verb)
    gpu = yaml.safe_load((BUILD / "docker" / "compose.gpu.yaml").read_text())
    assert set(gpu["services"]) == {"server"}
