"""The README's own commands work as written."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import WAIT, until_written

ROOT = Path(__file__).parents[1]
FREE = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health", "gateway")]
# A make inside `make test` would otherwise take over the outer one's flags and chatter.
OUTSIDE_MAKE = {name: value for name, value in os.environ.items() if "MAKE" not in name}
ENVIRONMENT = OUTSIDE_MAKE | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DEMO_EXIT": "1",
    "DEMO_PORTS": "free",
}


def blocks() -> list[list[str]]:
    found = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [block.splitlines() for block in found]


def test_the_two_commands(answers: list[ExactAnswer]) -> None:
    demo, test = blocks()[0]
    assert test in (ROOT / ".ci" / "run").read_text().splitlines()
    done = subprocess.run(
        demo, shell=True, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    known = [one.question.answer for one in answers]
    assert sum(answer in done.stdout.splitlines() for answer in known) >= 4
    assert done.stdout.splitlines()[-1] == "stopped"


def test_step_by_step(tmp_path: Path, answers: list[ExactAnswer]) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    *before, serve, chat = (shlex.split(line) for line in blocks()[1])
    for command in before:
        subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=True)
    ports = tmp_path / "ports.json"
    server = subprocess.Popen(
        [*serve, *FREE, "--port-file", str(ports)], cwd=tmp_path, env=ENVIRONMENT
    )
    try:
        until_written(ports, server)
        url = f"127.0.0.1:{json.loads(ports.read_text())['grpc']}"
        done = subprocess.run(
            [*chat, "--url", url],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=True,
            timeout=WAIT,
        )
        (one,) = (one for one in answers if one.question.messages[0].content == chat[-1])
        assert done.stdout == one.question.answer + "\n"
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT) == 0
    finally:
        server.kill()
        server.wait()
