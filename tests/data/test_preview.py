"""What a run shows: the first rows side by side, and a page with counts, plots and samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from nemotron_cli.main import app
from tests.data.runs import Asked
from tests.data.synthesis import recipe, reply, run, topics
from tests.standins.chat_server import ChatServer


@pytest.fixture
def asked() -> Asked:
    return Asked(reply)


STEPS = {
    "topics": {"rows": "topics.jsonl"},
    "answers": {"rows": "topics", "prompt": "{{ topic }}?", "samples": 2},
    "scored": {"rows": "answers", "score": {"reward": "reward"}},
    "pairs": {"rows": "scored", "pairs": {}},
}


def test_a_preview_takes_the_first_rows_and_is_no_part_of_the_run(
    standin: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    topics(tmp_path, "tea", "rice", "milk")
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(recipe(standin.url, STEPS), sort_keys=False))
    command = ["synthesize", str(path), str(out)]
    shown = CliRunner().invoke(app, [*command, "--preview", "1"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    for text in (
        "topics (1)",
        "answers (2)",
        "scored (2)",
        "topic: tea",
        "answer: tea?",
        "reward: ",
    ):
        assert text in shown.stdout
    assert "rice" not in shown.stdout
    assert {body["messages"][0]["content"] for body in asked.bodies} == {"tea?"}
    asked.bodies.clear()
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"]["answers"] == {
        "rows_in": 3,
        "rows_out": 6,
        "left_out": {},
    }
    assert {body["messages"][0]["content"] for body in asked.bodies} == {"tea?", "rice?", "milk?"}


@pytest.mark.slow
def test_a_report_shows_counts_plots_and_samples(standin: ChatServer, tmp_path: Path) -> None:
    topics(tmp_path, "<script>alert(1)</script>", "rice")
    run(tmp_path, recipe(standin.url, STEPS), report=True)
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<a href="#scored">scored</a></td><td class="number">4</td>' in page
    assert page.count("<svg") == 3  # lengths of two steps' answers, and the rewards
    assert "[chosen]\nUser: " in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
