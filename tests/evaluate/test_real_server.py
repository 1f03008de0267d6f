"""`nemotron compare` on the real stack: the tiny model's server, through the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_evaluate.comparison.run import run
from nemotron_evaluate.options import CompareOptions
from nemotron_serve.model_server import ModelServer
from tests.gateway.process import running
from tests.tiny_nemotron.answers import ExactAnswer


@pytest.fixture
def url(server: ModelServer, tmp_path: Path) -> Iterator[str]:
    with running(tmp_path, f"{server.endpoints.address}:{server.endpoints.http}") as gateway:
        yield gateway.url


def test_a_server_beside_what_it_computed_before(
    url: str, answers: list[ExactAnswer], tmp_path: Path
) -> None:
    """Alone or beside others, an answer is the same, and a conversation's prompt is answered."""
    texts = tmp_path / "texts.jsonl"
    rows = []
    for exact in answers[:8]:
        messages = [message.as_dict() for message in exact.question.messages]
        answer = {"role": "assistant", "content": exact.question.answer}
        rows.append({"messages": [*messages, answer]})
    texts.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"text": "Blue is the sky."}])
    )
    saved, output = tmp_path / "saved", tmp_path / "run"
    assert run(CompareOptions(url=url, texts=texts, save=saved, concurrency=1)) is None
    result = run(CompareOptions(url=url, against=saved, output=output, concurrency=8))
    assert result is not None
    assert result.first == result.second
    assert set(result.first) == {"model", "engine", "checkpoint", "template"}
    assert result.texts == 9
    assert result.tokens > 9 * 5
    assert result.mean_kl.value < 1e-3  # other batches round otherwise
    assert result.top1.value > 0.99
    assert result.answers is not None
    assert result.answers.count == 9
    assert result.answers.equal.value >= 8 / 9
