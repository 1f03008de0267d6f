"""The first steps of docs/evaluate.md, run as they are written, but for the port."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nemotron_cli.main import app
from tests.gateway.process import Running

PAGE = Path(__file__).parents[2] / "docs" / "evaluate.md"


def test_the_first_steps(
    gateway: Running, environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PAGE.read_text().partition("### First steps")[2].partition("\n### ")[0]
    rows, task, suite, command, shown = re.findall(r"```\w*\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name, content in (("sky.jsonl", rows), ("sky.yaml", task), ("suite.yaml", suite)):
        Path(name).write_text(content)
    words = shlex.split(command.replace("http://127.0.0.1:1424", gateway.url))
    done = CliRunner().invoke(app, [*words[1:], "--environments", str(environments)])
    assert done.exit_code == 0, done.exception
    assert shown in done.stdout
