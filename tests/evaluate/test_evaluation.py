"""`nemotron eval` with stand-ins for lm-eval and for the server, whose answers are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from nemotron_cli.main import app
from nemotron_core.errors import NemotronError
from nemotron_data.batch.lock import LOCK, held
from nemotron_evaluate.harnesses.environment import INSTALLED, LOCKS
from tests.standins import lm_eval
from tests.standins.chat_server import ChatServer, Reply, refused, said

ENGINE = {"id": "tiny", "engine": "a" * 64, "checkpoint": "b" * 64, "template": "c" * 64}
ROWS = [{"question": f"q{number}", "answer": "aab"} for number in range(8)]
RIGHT = {"q0", "q1", "q2", "q3", "q4", "q5"}


def answer(body: dict[str, Any], _inside: int) -> Reply:
    return said("aab" if body["messages"][-1]["content"] in RIGHT else "bbb")


def evaluate(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, NemotronError):
        raise result.exception
    return result


@pytest.fixture
def environments(tmp_path: Path) -> Path:
    """The folder of harnesses, with the stand-in in the place of lm-eval."""
    home = tmp_path / "harnesses" / "lm-eval"
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "lm_eval"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {lm_eval.__file__} "$@"\n')
    program.chmod(0o755)
    (home / INSTALLED).write_text((LOCKS / "lm-eval.txt").read_text())
    return home.parent


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of one benchmark of the user's own, which has two scores."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "task.yaml").write_text(task(tmp_path / "rows.jsonl"))
    scores = {
        "accuracy": {"metric": "exact_match", "filter": "loose", "card": 30.0},
        "letters": {"metric": "letters", "title": "letters a"},
    }
    own = {"title": "Own", "harness": "lm-eval", "task": "task.yaml", "items": 9, "scores": scores}
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"benchmarks": {"own": own, "tfeval": None}}))
    return path


def task(rows: Path) -> str:
    return yaml.safe_dump({"task": "own", "dataset_kwargs": {"data_files": {"test": str(rows)}}})


@pytest.fixture
def run(suite: Path, environments: Path, tmp_path: Path) -> Callable[..., Result]:
    def start(server: ChatServer, *more: object, output: str = "run") -> Result:
        return evaluate(
            *(suite, "--url", server.url, "-o", tmp_path / output),
            *("--environments", environments, *more),
        )

    return start


def test_the_report(run: Callable[..., Result], tmp_path: Path) -> None:
    with ChatServer(answer, model=ENGINE) as server:
        done = run(server)
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["server"] == {"model": "tiny"} | {
        name: ENGINE[name] for name in ("engine", "checkpoint", "template")
    }
    own = report["benchmarks"]["own"]
    assert own["items"] == 8
    accuracy = own["scores"]["accuracy"]
    assert accuracy["estimate"]["value"] == 75
    # Wilson's interval of 6 of 8.
    assert accuracy["estimate"]["low"] == pytest.approx(40.93, abs=0.01)
    assert accuracy["estimate"]["high"] == pytest.approx(92.85, abs=0.01)
    assert accuracy["verdict"] == "above"
    letters = own["scores"]["letters"]
    assert letters["count"] == 8 * 3
    assert letters["estimate"]["value"] == 50
    assert letters["estimate"]["low"] < 50 < letters["estimate"]["high"]
    assert letters["verdict"] is None
    assert own["remarks"][0] == "8 of the benchmark's 9 items"
    assert own["remarks"][1].startswith("n = 8 is too small to tell a difference below ")
    assert report["benchmarks"]["tfeval"]["remarks"][0].startswith("not run, because ")
    markdown = (tmp_path / "run" / "report.md").read_text()
    assert markdown.strip() == done.stdout.strip()
    assert "| Own | 75.00 | 40.93 to 92.85 | 8 | 30.00 | above the card's value |" in markdown
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 1
    assert "Own, letters a" in page


def test_a_stopped_run_goes_on_and_a_finished_one_asks_nothing(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    def dying(body: dict[str, Any], inside: int) -> Reply:
        return answer(body, inside) if server.requests < 6 else refused(503)

    with ChatServer(dying, model=ENGINE) as server:
        done = run(server)
    assert done.exit_code == 1
    assert "lm_eval ended with 1: " in str(done.exception)
    assert "HTTP Error 503" in str(done.exception)
    assert not (tmp_path / "run" / "report.json").exists()
    with ChatServer(answer, model=ENGINE) as server:
        assert run(server).exit_code == 0
        assert server.requests == 8 - 5
        assert run(server).exit_code == 0
        assert server.requests == 8 - 5
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["benchmarks"]["own"]["scores"]["accuracy"]["estimate"]["value"] == 75


def test_one_process_at_a_time_in_a_folder(run: Callable[..., Result], tmp_path: Path) -> None:
    with ChatServer(answer, model=ENGINE) as server, held(tmp_path / "run"):
        done = run(server)
        assert "another process is writing it" in str(done.exception)
        assert server.requests == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("lm-eval.log", "/dev/full", "cannot write: No space left on device"),
        ("results", "task.yaml", "cannot write: "),  # a file in the place of a folder
    ],
)
def test_a_full_disk_is_one_error_and_the_same_command_goes_on(
    name: str, target: str, message: str, run: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "run" / "own" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / target)
    with ChatServer(answer, model=ENGINE) as server:
        done = run(server)
        assert message in str(done.exception)
        assert str(path.parent) in str(done.exception)
        path.unlink()
        assert run(server).exit_code == 0


def test_another_engine_or_another_suite_is_refused(
    run: Callable[..., Result], suite: Path, tmp_path: Path
) -> None:
    with ChatServer(answer, model=ENGINE) as server:
        assert run(server).exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with ChatServer(answer, model=ENGINE | {"engine": "d" * 64}) as server:
        done = run(server)
        assert "the server's engine was aaaaaaaaaaaa… and is dddddddddddd…" in str(done.exception)
        assert server.requests == 0
    with ChatServer(answer, model=ENGINE) as server:
        done = run(server, "--limit", 2)
        assert "the benchmark own" in str(done.exception)
        content = yaml.safe_load(suite.read_text())
        suite.write_text(yaml.safe_dump({"benchmarks": {"more": content["benchmarks"]["own"]}}))
        assert run(server, "--only", "more").exit_code == 0  # a suite may get more benchmarks
    for path, data in before.items():
        if "own" in path.parts:
            assert path.read_bytes() == data
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report["benchmarks"]) == ["own", "tfeval", "more"]


def test_an_engine_that_changes_during_a_benchmark_is_noticed(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    model = dict(ENGINE)

    def restarted(body: dict[str, Any], inside: int) -> Reply:
        model["engine"] = "e" * 64
        return answer(body, inside)

    with ChatServer(restarted, model=model) as server:
        done = run(server)
    assert "the server became another one during own" in str(done.exception)
    assert not (tmp_path / "run" / "own" / "items.jsonl").exists()


def test_two_runs_on_the_same_items(run: Callable[..., Result], tmp_path: Path) -> None:
    def worse(body: dict[str, Any], _inside: int) -> Reply:
        return said("aab" if body["messages"][-1]["content"] in {"q0", "q6"} else "bbb")

    with ChatServer(answer, model=ENGINE) as server:
        assert run(server).exit_code == 0
    with ChatServer(worse, model=ENGINE | {"engine": "d" * 64}) as server:
        done = run(server, "--against", tmp_path / "run", output="other")
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "other" / "report.json").read_text())
    assert report["against"]["engine"] == ENGINE["engine"]
    accuracy, letters = report["pairs"]
    assert (accuracy["first"], accuracy["second"]) == (75, 25)
    assert (accuracy["only_first"], accuracy["only_second"]) == (5, 1)
    assert accuracy["p_value"] == pytest.approx(2 * (1 + 6) / 2**6)
    assert accuracy["difference"]["value"] == -50
    assert letters["only_first"] is None
    assert letters["p_value"] < accuracy["adjusted_p_value"] <= 1
    assert "Against the run before" in done.stdout
    # Without a server the report is made from the two folders, and is the same.
    again = evaluate("-o", tmp_path / "other", "--against", tmp_path / "run")
    assert again.stdout == done.stdout


def test_runs_on_other_questions_are_no_pair(run: Callable[..., Result], tmp_path: Path) -> None:
    with ChatServer(answer, model=ENGINE) as server:
        assert run(server).exit_code == 0
        rows = [{"question": f"other {number}", "answer": "aab"} for number in range(8)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = run(server, "--against", tmp_path / "run", output="other")
    assert "8 of the runs' questions differ, such as own/0" in str(done.exception)


def test_data_of_the_users_own(environments: Path, tmp_path: Path) -> None:
    """A benchmark of the card over a local file, whose rows are distributed over its tasks."""
    tasks = environments / "lm-eval/lib/python3.11/site-packages/lm_eval/tasks/mmlu/generative"
    tasks.mkdir(parents=True)
    for subject in ("anatomy", "college_physics"):
        (tasks / f"mmlu_{subject}.yaml").write_text(yaml.safe_dump({"task": subject}))
    data = tmp_path / "data"
    data.mkdir()
    subjects = ["anatomy", "college physics", "anatomy"]
    rows = [row | {"choices": [], "subject": subject}
            for row, subject in zip(ROWS, subjects, strict=False)]  # fmt: skip
    path = data / "mmlu-generative.jsonl"
    scores = {"accuracy": {"metric": "exact_match", "filter": "loose"}}
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"benchmarks": {"mmlu-generative": {"scores": scores}}}))
    with ChatServer(answer, model=ENGINE) as server:
        arguments = (
            *(suite, "--url", server.url, "-o", tmp_path / "run"),
            *("--environments", environments, "--data", data),
        )
        assert "put a JSONL file there with the columns question" in str(
            evaluate(*arguments).exception
        )
        path.write_text('{"question": "q0", "answer": "aab"}\n')
        assert "a row has no choices, subject" in str(evaluate(*arguments).exception)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks = tmp_path / "run" / "mmlu-generative" / "tasks"
        tasks.touch()
        assert "cannot write: File exists" in str(evaluate(*arguments).exception)
        tasks.unlink()
        done = evaluate(*arguments)
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["benchmarks"]["mmlu-generative"]["items"] == 3
    items = [json.loads(line)["name"] for line in
             (tmp_path / "run/mmlu-generative/items.jsonl").read_text().splitlines()]  # fmt: skip
    assert items == ["anatomy/0", "anatomy/1", "college_physics/0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2.0"}, "the task is of version 3.0, not 2.0"),
        ({"scores": {"x": {"metric": "bleu"}}}, "item 0 of own has no bleu (any filter)"),
    ],
)
def test_other_results_than_expected(
    change: dict[str, Any],
    message: str,
    run: Callable[..., Result],
    suite: Path,
) -> None:
    content = yaml.safe_load(suite.read_text())
    content["benchmarks"]["own"] |= change
    suite.write_text(yaml.safe_dump(content))
    with ChatServer(answer, model=ENGINE) as server:
        assert message in str(run(server).exception)


def test_a_missing_harness_is_said_before_anything_runs(suite: Path, tmp_path: Path) -> None:
    with ChatServer(answer, model=ENGINE) as server:
        done = evaluate(
            *(suite, "--url", server.url, "-o", tmp_path / "run"),
            *("--environments", tmp_path / "none"),
        )
    assert "nemotron eval install lm-eval --environments" in str(done.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["card"], "there is no folder for the run"),
        (["card", "more", "-o", "r"], "more is too much"),
        (["--url", "http://x", "-o", "r"], "there is no suite"),
        (["-o", "missing"], "no run of an evaluation"),
        (["card", "--url", "http://x", "-o", "r", "--only", "x"], "the suite has no x"),
        (["missing.yaml", "--url", "http://x", "-o", "r"], "no readable suite"),
        (["install"], "no harness is named"),
        (["install", "none"], "there is no harness none"),
    ],
)
def test_wrong_options(arguments: list[str], message: str) -> None:
    done = evaluate(*arguments)
    assert done.exit_code == 1
    assert message in str(done.exception)
