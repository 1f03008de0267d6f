"""Batches on the real stack, as OpenAI's scripts run them, also when the gateway is killed."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
from openai.types import Batch

from tests.gateway.process import MODEL, Running, running
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import until

FINAL = ("completed", "failed", "expired", "cancelled")


def library(gateway: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


def write(path: Path, answers: Sequence[ExactAnswer]) -> dict[str, str]:
    """Write a batch's input, and return the expected texts."""
    with path.open("w") as file:
        for number, exact in enumerate(answers):
            messages = [message.as_dict() for message in exact.question.messages]
            body = {"model": MODEL, "messages": messages, "temperature": 0}
            line = {"custom_id": f"q{number}", "method": "POST", "body": body}
            file.write(json.dumps(line | {"url": "/v1/chat/completions"}) + "\n")
    return {f"q{number}": exact.question.answer for number, exact in enumerate(answers)}


def begin(client: openai.OpenAI, path: Path) -> Batch:
    with path.open("rb") as content:
        file = client.files.create(file=content, purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    while batch.status not in FINAL:
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def texts(client: openai.OpenAI, batch: Batch) -> dict[str, str]:
    assert batch.output_file_id
    lines = client.files.content(batch.output_file_id).text.splitlines()
    results: list[dict[str, Any]] = [json.loads(line) for line in lines]
    found = {
        result["custom_id"]: result["response"]["body"]["choices"][0]["message"]["content"]
        for result in results
    }
    assert len(found) == len(results)
    return found


def test_a_batch_whose_gateway_is_killed(
    triton: str, answers: list[ExactAnswer], tmp_path: Path
) -> None:
    expected = write(tmp_path / "in.jsonl", answers)
    options = [f"--files={tmp_path / 'files'}"]
    killed = 0
    with running(tmp_path, triton, *options) as gateway, library(gateway) as client:
        batch = begin(client, tmp_path / "in.jsonl")
    (tmp_path / "port.json").unlink()
    for rows in (60, 120, 250):
        with running(tmp_path, triton, *options) as gateway, library(gateway) as client:

            def is_there(client: openai.OpenAI = client, rows: int = rows) -> bool:
                counts = client.batches.retrieve(batch.id).request_counts
                return counts is not None and counts.completed >= rows

            until(is_there)
            gateway.process.send_signal(signal.SIGKILL)
            gateway.process.wait()
            killed += 1
        (tmp_path / "port.json").unlink()
    with running(tmp_path, triton, *options) as gateway, library(gateway) as client:
        batch = ended(client, batch)
        assert (batch.status, batch.error_file_id, killed) == ("completed", None, 3)
        assert texts(client, batch) == expected


def test_a_gateway_that_is_stopped_lets_a_batch_rest(
    triton: str, answers: list[ExactAnswer], tmp_path: Path
) -> None:
    """SIGTERM ends the gateway within the time of a few answers, not of the whole batch."""
    expected = write(tmp_path / "in.jsonl", answers)
    options = [f"--files={tmp_path / 'files'}"]
    with running(tmp_path, triton, *options) as gateway, library(gateway) as client:
        batch = begin(client, tmp_path / "in.jsonl")
        until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
        gateway.process.terminate()
        assert gateway.process.wait() == 0, gateway.log.read_text()
        assert "Traceback" not in gateway.log.read_text()
    with running(tmp_path, triton, *options) as gateway, library(gateway) as client:
        batch = ended(client, client.batches.retrieve(batch.id))
        assert (batch.status, texts(client, batch)) == ("completed", expected)
