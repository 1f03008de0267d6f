"""`nemotron serve ENGINE -- COMMAND`, and processes of a launcher that the engine does not need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.serve.test_serve import FREE_PORTS, NEMOTRON, serving
from tests.serve.test_tensorrt_lane import AS_ROOT
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import WAIT, until


def run(
    *command: str,
    engine: Path,
    environment: dict[str, str] | None = None,
    launcher: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*launcher, NEMOTRON, "serve", str(engine), *FREE_PORTS, "--", *command],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=2 * WAIT,
        check=False,
    )


def test_it_runs_when_the_server_is_ready_and_ends_it(
    engine_bf16: Path, answers: list[ExactAnswer]
) -> None:
    answer = next(answer for answer in answers if len(answer.question.messages) == 1)
    done = run(NEMOTRON, "chat", answer.question.messages[0].content, engine=engine_bf16)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert answer.question.answer in lines
    assert lines[-1] == "stopped"


def test_its_exit_code_is_the_servers(engine_bf16: Path) -> None:
    connect = "gateway=${NEMOTRON_GATEWAY#http://}; exec 3<>/dev/tcp/${gateway/:/\\/} && exit 7"
    done = run("bash", "-c", connect, engine=engine_bf16)
    assert done.returncode == 7
    assert "nemotron: the command ended with status 7 [bash -c" in done.stderr


def test_a_signal_ends_it_with_the_server(engine_bf16: Path, tmp_path: Path) -> None:
    trap = (
        f"trap 'echo told >> {tmp_path}/told; exit 5' TERM; touch {tmp_path}/trapped;"
        " while :; do sleep 0.1; done"
    )
    with serving(engine_bf16, tmp_path, "--", "bash", "-c", trap) as (process, _ports):
        until((tmp_path / "trapped").exists)
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 5, output
    assert (tmp_path / "told").read_text() == "told\n"


def test_none_of_its_processes_is_left(engine_bf16: Path, tmp_path: Path) -> None:
    stubborn = f"trap '' TERM; sleep 1000 & echo $! > {tmp_path}/sleeper; exit 0"
    done = run("bash", "-c", stubborn, engine=engine_bf16)
    assert done.returncode == 0, done.stderr
    sleeper = int((tmp_path / "sleeper").read_text())
    assert not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == "zombie"


def test_one_that_does_not_exist(engine_bf16: Path) -> None:
    done = run("no-such-program", engine=engine_bf16)
    assert done.returncode == 1
    assert done.stderr == "nemotron: no such command [no-such-program]\n"
    assert done.stdout == ""


def test_of_many_processes_the_first_serves(engine_bf16: Path) -> None:
    mpirun = (str(Path(sys.executable).with_name("mpirun")), "-n", "3")
    say = "echo once; env"
    done = run("bash", "-c", say, engine=engine_bf16, environment=AS_ROOT, launcher=mpirun)
    assert done.returncode == 0, done.stderr
    assert "COMM_WORLD" not in done.stdout  # the command is no rank
    assert done.stdout.splitlines().count("once") == 1
    assert done.stdout.splitlines().count("stopped") == 1
