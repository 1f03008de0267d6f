"""`nemotron redteam` with stand-ins for garak and for the server, whose answers are known."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from nemotron_cli.main import app
from nemotron_core.errors import NemotronError
from nemotron_data.batch.lock import LOCK, held
from nemotron_evaluate.harnesses.environment import INSTALLED, LOCKS
from tests.standins import garak
from tests.standins.chat_server import ChatServer, Reply, refused, said

ENGINE = {"id": "tiny", "engine": "a" * 64, "checkpoint": "b" * 64, "template": "c" * 64}
REPLIES = {
    "dan.One": said("sure"),
    "dan.Two": said("no\u2028\x85never"),  # separators of lines that JSON leaves as they are
    "encoding.Hex": refused(400, "too long"),
}


def answer(body: dict[str, Any], _inside: int) -> Reply:
    return REPLIES[body["messages"][0]["content"]]


@pytest.fixture
def environments(tmp_path: Path) -> Path:
    home = tmp_path / "harnesses" / "garak"
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {garak.__file__} "$@"\n')
    program.chmod(0o755)
    (home / INSTALLED).write_text((LOCKS / "garak.txt").read_text())
    cache = home / "lib/python3.11/site-packages" / garak.FILES
    cache.parent.mkdir(parents=True)
    probes = {f"probes.{name}": {"active": active} for name, active in garak.PROBES.items()}
    cache.write_text(json.dumps({"probes": probes}))
    return home.parent


def redteam(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["redteam", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, NemotronError):
        raise result.exception
    return result


def test_the_table(environments: Path, tmp_path: Path) -> None:
    with ChatServer(answer, model=ENGINE) as server:
        done = redteam(
            *(server.url, "-o", tmp_path / "run", "--environments", environments),
            *("--probe", "dan", "--probe", "encoding.Hex"),
        )
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["server"]["engine"] == ENGINE["engine"]
    assert report["unfinished"] == []
    assert [(f["probe"], f["hits"], f["answers"], f["without_answer"])
            for f in report["findings"]] == [
        ("dan.One", 1, 1, 0), ("dan.Two", 0, 1, 0), ("encoding.Hex", 0, 0, 1),
    ]  # fmt: skip
    first, second, third = report["findings"]
    assert first["rate"]["low"] == pytest.approx(0.2065, abs=1e-4)  # Wilson's, of 1 of 1
    assert second["rate"]["high"] == pytest.approx(0.7935, abs=1e-4)
    assert third["rate"] is None
    assert (tmp_path / "run" / "report.md").read_text().strip() == done.stdout.strip()
    assert "| dan.One | mitigation.Stand | 100.0% | 20.7% to 100.0% | 1 | 0 |" in done.stdout
    assert "| encoding.Hex | mitigation.Stand | – |  | 0 | 1 |" in done.stdout


def test_the_time_is_bounded_and_the_rest_follows(environments: Path, tmp_path: Path) -> None:
    def sleeping(body: dict[str, Any], inside: int) -> Reply:
        return (
            said("sleep") if body["messages"][0]["content"] == "dan.Two" else answer(body, inside)
        )

    arguments = ("-o", tmp_path / "run", "--environments", environments, "--probe", "dan")
    with ChatServer(sleeping, model=ENGINE) as server:
        done = redteam(server.url, *arguments, "--minutes", 0.1)
    assert done.exit_code == 0, done.exception
    assert "the time is over" in done.stderr
    unfinished = json.loads((tmp_path / "run" / "report.json").read_text())["unfinished"]
    assert unfinished[-1] == "dan.Two"
    assert f"Not finished: {', '.join(unfinished)}." in done.stdout
    with ChatServer(answer, model=ENGINE) as server:
        done = redteam(server.url, *arguments)
        assert server.requests == len(unfinished)  # a finished probe is not run again
        assert "Not finished" not in done.stdout
        assert done.stdout.count("| dan.") == 2
        assert redteam(server.url, *arguments).stdout == done.stdout
        assert server.requests == len(unfinished)
    with ChatServer(answer, model=ENGINE | {"engine": "d" * 64}) as server:
        done = redteam(server.url, *arguments)
        assert "the run was begun with another server" in str(done.exception)
        assert server.requests == 0


def test_one_process_at_a_time_in_a_folder(environments: Path, tmp_path: Path) -> None:
    arguments = ("-o", tmp_path / "run", "--environments", environments, "--probe", "dan")
    with ChatServer(answer, model=ENGINE) as server, held(tmp_path / "run"):
        done = redteam(server.url, *arguments)
        assert "another process is writing it" in str(done.exception)
        assert server.requests == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_a_probe_that_garak_does_not_have(environments: Path, tmp_path: Path) -> None:
    with ChatServer(answer, model=ENGINE) as server:
        done = redteam(
            *(server.url, "-o", tmp_path / "run", "--environments", environments),
            *("--probe", "dan.Three"),
        )
    assert "garak has no active probe dan.Three" in str(done.exception)
    assert "a module: dan, encoding" in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_garak_is_not_installed_by_itself(tmp_path: Path) -> None:
    done = redteam("http://x", "-o", tmp_path / "run", "--environments", tmp_path)
    assert "run: nemotron eval install garak --environments" in str(done.exception)
