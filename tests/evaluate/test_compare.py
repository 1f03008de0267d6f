"""`nemotron compare` with a stand-in for a server that knows prompt_logprobs, as vLLM does."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nemotron_cli.main import app
from nemotron_core.errors import NemotronError
from nemotron_evaluate.comparison.run import FIRST, SECOND
from tests.standins.chat_server import ChatServer, Reply, refused

WORDS = ["the", "sky", "is", "blue", "and", "sea", "green", "\n"]
TEXTS = [{"ids": [0, 1, 2, 3, 4, 0]}, {"ids": [0, 5, 2, 6]}, {"ids": [1, 2, 3]}]


def log_probs(sharpness: float, previous: int) -> list[float]:
    """A distribution over eight words that depends on the word before."""
    logits = [sharpness * math.cos(previous + 2 * word) for word in range(len(WORDS))]
    total = math.log(sum(map(math.exp, logits)))
    return [logit - total for logit in logits]


def answer(sharpness: float, body: dict[str, Any]) -> Reply:
    ids = body["prompt"]
    choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length"}
    if "prompt_logprobs" in body:
        rows: list[Any] = [None]
        for previous, id_ in itertools.pairwise(ids):
            values = log_probs(sharpness, previous)
            best = sorted(range(len(WORDS)), key=lambda word: -values[word])
            shown = {*best[: body["prompt_logprobs"]], id_}
            rows.append(
                {str(i): {"logprob": values[i], "decoded_token": " " + WORDS[i]} for i in shown}
            )
        choice["prompt_logprobs"] = rows
    else:
        tokens = ids[-1:]
        for _ in range(body["max_tokens"]):
            values = log_probs(sharpness, tokens[-1])
            tokens.append(values.index(max(values)))
        choice["logprobs"] = {"tokens": [WORDS[id_] for id_ in tokens[1:]]}
    return 200, {"id": "x", "choices": [choice]}, {}


@contextmanager
def model(sharpness: float) -> Iterator[ChatServer]:
    with ChatServer(lambda body, _inside: answer(sharpness, body)) as server:
        yield server


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def compare(*arguments: object) -> Done:
    """Run the verb in this process, which is faster than a process for each."""
    words = ["compare", *map(str, arguments), "--patience", "0"]
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, NemotronError):
        raise result.exception
    error = "" if result.exception is None else str(result.exception)
    return Done(result.exit_code, result.stdout, error)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    return path


def whole_kl(first: float, second: float) -> list[float]:
    """The divergence at each token over all words."""
    return [
        sum(
            math.exp(p) * (p - q)
            for p, q in zip(log_probs(first, before), log_probs(second, before), strict=True)
        )
        for row in TEXTS
        for before in row["ids"][:-1]
    ]


def test_two_servers(texts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with model(1.0) as first, model(1.3) as second:
        done = compare(
            *(first.url, second.url, "--texts", texts, "-o", run),
            *("--alternatives", 8, "--answer-tokens", 5),
        )
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "report.json").read_text())
    expected = whole_kl(1.0, 1.3)
    assert report["tokens"] == len(expected) == 10
    assert report["mean_kl"]["value"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert report["mean_kl"]["low"] < report["mean_kl"]["value"] < report["mean_kl"]["high"]
    assert report["kl_percentiles"]["max"] == pytest.approx(max(expected), abs=1e-6)
    assert report["top1"]["value"] == 1  # sharper, but with the same order
    own = [
        [log_probs(sharpness, a)[b] for row in TEXTS for a, b in itertools.pairwise(row["ids"])]
        for sharpness in (1.0, 1.3)
    ]
    assert report["perplexity_first"] == pytest.approx(math.exp(-np.mean(own[0])))
    ratio = math.exp(np.mean(own[0]) - np.mean(own[1]))
    assert report["perplexity_ratio"]["value"] == pytest.approx(ratio)
    assert report["answers"]["count"] == 3
    assert report["answers"]["equal"]["value"] == 1
    assert report["answers"]["common_prefix"]["value"] == 5
    worst = [token["kl"] for token in report["worst"]]
    assert worst == sorted(worst, reverse=True)
    assert len(worst) == 10
    with np.load(run / "tokens.npz") as table:
        assert table["kl"].tolist() == pytest.approx(expected, abs=1e-6)
        assert table["text"].tolist() == [0] * 5 + [1] * 3 + [2] * 2
    assert (run / "report.md").read_text().strip() == done.stdout.strip()
    assert "the tokens that differ most" in done.stdout.lower()


def test_a_saved_run_is_compared_as_the_server_itself(texts: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    with model(1.0) as first, model(1.3) as second:
        assert compare(first.url, "--texts", texts, "--save", saved).returncode == 0
        asked = first.requests
        done = compare(second.url, "--against", saved, "-o", tmp_path / "later")
        assert done.returncode == 0, done.stderr
        assert first.requests == asked == 7  # a probe, and two for each text
        both = compare(first.url, second.url, "--texts", texts, "-o", tmp_path / "both")
        assert both.returncode == 0, both.stderr
        assert compare(second.url, "--against", saved, "-o", tmp_path / "later").returncode == 0
        assert second.requests == 7 + 7 + 1  # the finished run asks nothing again
    reports = [json.loads((tmp_path / n / "report.json").read_text()) for n in ("later", "both")]
    assert reports[0] == reports[1]


def test_a_server_is_equal_to_itself(texts: Path, tmp_path: Path) -> None:
    with model(1.0) as server:
        done = compare(
            *(server.url, server.url, "--texts", texts, "-o", tmp_path / "run"),
            *("--max-kl", 0, "--min-top1", 1),
        )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["mean_kl"] == {"value": 0, "low": 0, "high": 0}
    assert report["perplexity_ratio"]["value"] == 1


@pytest.mark.parametrize(
    ("second", "limit", "message"),
    [
        (1.3, ("--max-kl", "0.001"), "the mean KL is at least"),
        (-1.0, ("--min-top1", "0.5"), "of the most probable tokens are equal, less than 0.5"),
    ],
)
def test_limits_set_the_exit_code(
    second: float, limit: tuple[str, str], message: str, texts: Path, tmp_path: Path
) -> None:
    with model(1.0) as a, model(second) as b:
        done = compare(a.url, b.url, "--texts", texts, "-o", tmp_path / "run", *limit)
        assert done.returncode == 1
        assert message in done.stderr
        assert (tmp_path / "run" / "report.json").exists()  # the report is there all the same


def test_other_texts_or_another_engine_do_not_mix(texts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with model(1.0) as a, model(1.3) as b:
        assert compare(a.url, b.url, "--texts", texts, "-o", run).returncode == 0
        texts.write_text('{"ids": [1, 2, 3, 4]}\n')
        done = compare(a.url, b.url, "--texts", texts, "-o", run)
    assert done.returncode == 1
    assert "begun with other texts" in done.stderr
    assert len((run / FIRST / "rows.jsonl").read_text().splitlines()) == 6
    assert (run / SECOND / "rows.jsonl").read_text() == (run / FIRST / "rows.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["u", "--texts", "t"], "nothing to compare with"),
        (["u", "v", "--texts", "t"], "no folder for the report"),
        (["u", "v", "-o", "r"], "there are no texts"),
        (["u", "--against", "s", "--save", "s"], "exclude each other"),
        (["u", "--against", "s", "-o", "r", "--texts", "t"], "has its own texts"),
        (["u", "--save", "s", "--texts", "t", "--max-kl", "1"], "--save compares nothing"),
        (["http://x", "--against", "missing", "-o", "r"], "no saved run"),
    ],
)
def test_wrong_options(arguments: list[str], message: str) -> None:
    done = compare(*arguments)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 1]: each line is an object"),
        ('{"text": "a", "ids": [1, 2]}', "neither text, messages nor ids"),
        ('{"ids": [1]}', "a text needs two tokens"),
        ('{"ids": [1, "2"]}', "not a list of token ids"),
        ("{", "not JSON"),
        ("", "there is no text"),
    ],
)
def test_wrong_texts(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(line + "\n")
    with model(1.0) as server:
        done = compare(server.url, "--texts", path, "--save", tmp_path / "saved")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "saved").exists()


def test_a_server_without_log_probabilities_of_prompts(texts: Path, tmp_path: Path) -> None:
    def plain(_body: dict[str, Any], _inside: int) -> Reply:
        return 200, {"id": "x", "choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}, {}

    def refusing(_body: dict[str, Any], _inside: int) -> Reply:
        return refused(400, "the engine has no prompt_logprobs")

    def refusing_long(body: dict[str, Any], _inside: int) -> Reply:
        return refused(400, "too long") if len(body["prompt"]) > 5 else answer(1.0, body)

    with ChatServer(plain) as a:
        done = compare(a.url, a.url, "--texts", texts, "-o", tmp_path / "run")
        assert done.returncode == 1
        assert "a prompt came without log-probabilities" in done.stderr
        assert a.requests == 1  # known before all texts are sent
    with ChatServer(refusing) as b:
        done = compare(b.url, "--texts", texts, "--save", tmp_path / "saved")
        assert done.returncode == 1
        assert "the engine has no prompt_logprobs" in done.stderr
    with ChatServer(refusing_long) as c:
        done = compare(c.url, c.url, "--texts", texts, "-o", tmp_path / "third")
        assert done.returncode == 1
        assert "1 of 6 requests failed" in done.stderr
        assert not (tmp_path / "third" / "report.json").exists()
