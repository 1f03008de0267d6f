"""Runs of a recipe: what is asked, and what is asked again after a change."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_core.errors import NemotronError
from nemotron_data.batch.lock import LOCK
from nemotron_data.options import SynthesisOptions
from nemotron_data.synthesis.run import synthesize
from nemotron_serve.model_server import ModelServer
from tests.data.runs import NEMOTRON, Asked, wait_for
from tests.data.synthesis import recipe, reply, rows, run, topics
from tests.standins.chat_server import ChatServer, Reply, refused
from tests.standins.reward_server import reward_server, scores_of

WEIGHTS = (0.3, 0.74, 0.46, 0.47, -0.33)
SAMPLES = 3


def pipeline(url: str, **changes: Any) -> dict[str, Any]:
    """Return a recipe whose `answers` have these changes: two questions a topic, three answers."""
    steps = {
        "questions": {
            "rows": "topics.jsonl",
            "prompt": "A list about {{ topic }}",
            "list": {"as": "question", "count": 2},
        },
        "answers": {"rows": "questions", "prompt": "{{ question }}?", "samples": SAMPLES} | changes,
        "scored": {"rows": "answers", "score": {"reward": "reward"}},
        "best": {"rows": "scored", "filter": {"best": 1}},
    }
    outputs = {"out.jsonl": {"rows": "best", "format": "messages"}}
    return recipe(url, steps, outputs)


@pytest.fixture
def asked() -> Asked:
    return Asked(reply)


def kinds(asked: Asked) -> dict[str, int]:
    """Return how many lists, answers and scores were asked for since the last call."""
    counts: Counter[str] = Counter()
    for body in asked.bodies:
        last = body["messages"][-1]
        is_list = last["content"].startswith("A list")
        counts["score" if last["role"] == "assistant" else "list" if is_list else "answer"] += 1
    asked.bodies.clear()
    return dict(counts)


def test_each_step_is_asked_once_and_what_is_added_later_too(
    standin: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    """Also topics that are added after the scores, and a topic whose text is corrected."""
    topics(tmp_path, "tea", "rice")
    manifest = run(tmp_path, pipeline(standin.url))
    assert kinds(asked) == {"list": 2, "answer": 4 * SAMPLES, "score": 4 * SAMPLES}
    assert manifest.outputs == {"out.jsonl": 4}
    best = rows(tmp_path)
    run(tmp_path, pipeline(standin.url))
    assert kinds(asked) == {}
    assert rows(tmp_path) == best
    topics(tmp_path, "milk", "tea", "rice")
    manifest = run(tmp_path, pipeline(standin.url))
    assert kinds(asked) == {"list": 1, "answer": 2 * SAMPLES, "score": 2 * SAMPLES}
    assert manifest.outputs == {"out.jsonl": 6}
    assert rows(tmp_path)[2:] == best
    topics(tmp_path, "milk", "green tea", "rice")
    run(tmp_path, pipeline(standin.url))
    assert kinds(asked) == {"list": 1, "answer": 2 * SAMPLES, "score": 2 * SAMPLES}
    topics(tmp_path, "rice", "milk")
    assert run(tmp_path, pipeline(standin.url)).outputs == {"out.jsonl": 4}
    assert kinds(asked) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt": "{{ question }}!"}, {"answer": 4 * SAMPLES, "score": 4 * SAMPLES}),
        ({"sampling": {"temperature": 0.5}}, {"answer": 4 * SAMPLES, "score": 4 * SAMPLES}),
        ({"samples": SAMPLES + 1}, {"answer": 4, "score": 4}),
        ({"samples": SAMPLES - 1}, {}),
        ({"attempts": 2}, {}),
    ],
)
def test_a_changed_step_asks_only_what_depends_on_it(
    change: dict[str, Any],
    expected: dict[str, int],
    standin: ChatServer,
    asked: Asked,
    tmp_path: Path,
) -> None:
    topics(tmp_path, "tea", "rice")
    run(tmp_path, pipeline(standin.url))
    asked.bodies.clear()
    manifest = run(tmp_path, pipeline(standin.url, **change))
    assert kinds(asked) == expected
    assert manifest.outputs == {"out.jsonl": 4}


def test_another_seed_asks_everything_again_and_another_url_nothing(
    standin: ChatServer, asked: Asked, tmp_path: Path
) -> None:
    topics(tmp_path, "tea")
    run(tmp_path, pipeline(standin.url))
    first = rows(tmp_path)
    asked.bodies.clear()
    run(tmp_path, pipeline("http://127.0.0.1:1"))
    assert kinds(asked) == {}
    run(
        tmp_path,
        pipeline("http://127.0.0.1:1") | {"seed": 7},
        url=[f"generator={standin.url}", f"reward={standin.url}"],
    )
    assert kinds(asked) == {"list": 1, "answer": 2 * SAMPLES, "score": 2 * SAMPLES}
    assert rows(tmp_path) != first


def test_rows_that_fail_end_the_run_or_are_skipped(tmp_path: Path) -> None:
    is_broken = True

    def answer(body: dict[str, Any], inside: int) -> Reply:
        broken = is_broken and "tea" in str(body["messages"][-1]["content"])
        return refused(400, "no tea") if broken else reply(body, inside)

    topics(tmp_path, "tea", "rice")
    with ChatServer(answer) as standin:
        message = r"1 of 2 questions failed .*questions\.jsonl\.errors"
        with pytest.raises(NemotronError, match=message):
            run(tmp_path, pipeline(standin.url))
        manifest = run(tmp_path, pipeline(standin.url), skip_failed=True)
        assert manifest.steps["questions"].left_out == {"failed": 1}
        assert manifest.outputs == {"out.jsonl": 2}
        is_broken = False
        assert run(tmp_path, pipeline(standin.url)).outputs == {"out.jsonl": 4}


def test_nothing_is_written_if_the_recipe_is_wrong(standin: ChatServer, tmp_path: Path) -> None:
    wrong = pipeline(standin.url, rows="misspelt")
    topics(tmp_path, "tea")
    with pytest.raises(NemotronError, match=r"neither such a file nor.*steps.answers: .*misspelt"):
        run(tmp_path, wrong)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    (tmp_path / "out" / LOCK).touch()  # other verbs hold their folders, too
    for preview in (None, 1):
        with pytest.raises(NemotronError, match="holds something that is no run"):
            run(tmp_path, pipeline(standin.url), preview=preview)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"thesis.tex", LOCK}


def test_a_missing_column_is_named(standin: ChatServer, tmp_path: Path) -> None:
    topics(tmp_path, "tea")
    message = r"'colour' is undefined \(columns: topic, provenance, question\).*steps.answers"
    with pytest.raises(NemotronError, match=message):
        run(tmp_path, pipeline(standin.url, prompt="{{ colour }}"))


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    asked = Asked(reply)
    topics(tmp_path, *(f"topic {number}" for number in range(40)))
    with ChatServer(asked) as standin:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(pipeline(standin.url), sort_keys=False))
        command = [NEMOTRON, "synthesize", str(path), str(tmp_path / "out"), "--concurrency", "8"]
        for count in (20, 100, 300):
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            wait_for(lambda count=count: len(asked.bodies) >= count, process)
            process.kill()
            process.wait()
        manifest = run(tmp_path, pipeline(standin.url))
    assert manifest.outputs == {"out.jsonl": 80}
    questions = Counter(json.dumps(body, sort_keys=True) for body in asked.bodies)
    assert len(questions) == 40 + 80 * SAMPLES + 80 * SAMPLES
    # What was at the server when a run was killed is asked again, and nothing else.
    assert sum(questions.values()) - len(questions) <= 3 * 8


def test_the_real_model_and_a_stand_in_for_the_reward_model(
    server: ModelServer, tmp_path: Path
) -> None:
    """By the command, twice, into two folders: the same data, and each reward is the model's."""
    url = f"grpc://{server.endpoints.address}:{server.endpoints.grpc}"
    steps = {
        "answers": {
            "rows": "topics.jsonl",
            "prompt": "Tell me about {{ topic }}.",
            "samples": 6,
            "sampling": {"max_tokens": 12, "temperature": 2.0},
            "accept": ["any"],
        },
        "distinct": {"rows": "answers", "dedup": {"text": "{{ topic }}: {{ answer }}"}},
        "scored": {"rows": "distinct", "score": {"reward": "reward"}},
        "best": {"rows": "scored", "filter": {"where": "reward >= 1", "best": 2}},
        "pairs": {"rows": "scored", "pairs": {"margin": 0.5}},
    }
    outputs = {
        "sft.jsonl": {"rows": "best", "format": "messages"},
        "preferences.jsonl": {"rows": "pairs", "format": "trl"},
    }
    topics(tmp_path, "the sky", "tea", "{{ 7 * 7 }}")
    with reward_server() as scorer:
        content = recipe(url, steps, outputs)
        content["models"]["reward"]["url"] = scorer.url
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        # One at a time: what else is in an engine's batch may change the last bits of a logit.
        command = [NEMOTRON, "synthesize", str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]
        done = subprocess.run(
            [*command, "--concurrency", "1"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        counts = json.loads(done.stdout)["steps"]
        assert scorer.requests == counts["distinct"]["rows_out"] > 9
        other = tmp_path / "other"
        options = SynthesisOptions(recipe=command[2], output=other, concurrency=1)
        synthesize(options)
    assert (other / "sft.jsonl").read_bytes() == (tmp_path / "out" / "sft.jsonl").read_bytes()

    def worth(text: str) -> float:
        return sum(w * s for w, s in zip(WEIGHTS, scores_of(text).values(), strict=True))

    rewards: dict[str, list[float]] = {}
    for row in rows(tmp_path, "steps/scored.jsonl"):
        assert row["messages"][0]["content"] == f"Tell me about {row['topic']}."
        assert row["reward"] == pytest.approx(worth(row["answer"]))
        rewards.setdefault(row["messages"][0]["content"], []).append(row["reward"])
    assert max(map(len, rewards.values())) > 2  # each sample has a seed of its own
    kept: dict[str, list[float]] = {}
    for row in rows(tmp_path, "sft.jsonl"):
        kept.setdefault(row["messages"][0]["content"], []).append(row["reward"])
    good = {name: sorted(found, reverse=True)[:2] for name, found in rewards.items()}
    good = {name: [value for value in found if value >= 1] for name, found in good.items()}
    assert {name: sorted(found, reverse=True) for name, found in kept.items()} == {
        name: found for name, found in good.items() if found
    }
    pairs = rows(tmp_path, "preferences.jsonl")
    assert len(pairs) == sum(max(found) - min(found) > 0.5 for found in rewards.values())
    for row in pairs:
        assert worth(row["chosen"][0]["content"]) == pytest.approx(row["chosen_reward"])
        assert worth(row["rejected"][0]["content"]) == pytest.approx(row["rejected_reward"])
        assert row["chosen_reward"] - row["rejected_reward"] > 0.5
