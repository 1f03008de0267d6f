"""The synthetic engine keeps its pace, ends what is cancelled, and rests while nothing runs."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from bench.measurements.synthetic_engine import (
    FIRST_ID,
    HZ_VARIABLE,
    IDS,
    SyntheticAdapter,
)
from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_engine.protocol import Chunk, Request


def write_settings(folder: Path) -> None:
    """Write the settings of an engine that computes two requests in a step."""
    CpuEngineSettings(
        vocab_size=256,
        max_seq_len=100_000,
        max_batch_size=2,
        max_num_tokens=256,
        max_queue_size=4,
        request_seconds=60,
        dtype="bf16",
        kv_cache_tokens=1024,
    ).write(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_settings(tmp_path)
    return tmp_path


def request(name: str, max_tokens: int) -> Request:
    return Request(key=name.encode(), input_ids=[1], max_tokens=max_tokens)


def test_tokens_come_at_the_pace_also_of_steps_that_were_late(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HZ_VARIABLE, "200")
    adapter = SyntheticAdapter(folder)
    adapter.ask(request("a", 100_000))
    start = time.monotonic()
    tokens = 0
    while time.monotonic() < start + 0.5:
        tokens += sum(len(chunk.token_ids) for chunk in adapter.collect())
        time.sleep(0.02)  # four periods
    assert tokens <= 200 * (time.monotonic() - start)
    assert tokens > 60  # also where this process gets a fraction of a core
    time.sleep(0.5)
    (chunk,) = adapter.collect()
    assert len(chunk.token_ids) == 20  # a tenth of a second: an engine that waits is slower
    adapter.close()


def test_nothing_wakes_the_process_while_nothing_runs(folder: Path) -> None:
    adapter = SyntheticAdapter(folder)
    assert list(adapter.collect()) == []
    adapter.ask(request("a", 100_000))
    adapter.cancel(b"a")
    time.sleep(0.05)
    assert list(adapter.collect()) == []
    adapter.ask(request("b", 1))
    time.sleep(0.05)
    assert [chunk.finish_reason for chunk in adapter.collect()] == ["length"]
    time.sleep(0.05)
    assert list(adapter.collect()) == []
    adapter.close()


def test_more_requests_than_a_step_computes_wait_in_their_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HZ_VARIABLE, "0")
    adapter = SyntheticAdapter(folder)
    assert adapter.wake_file is None
    for name, tokens in (("a", 3), ("b", 1), ("c", 2)):
        adapter.ask(request(name, tokens))
    steps: list[list[Chunk]] = [list(adapter.collect()) for _ in range(3)]
    assert [[chunk.key for chunk in step] for step in steps] == [
        [b"a", b"b"],
        [b"a", b"c"],
        [b"a", b"c"],
    ]
    counts = Counter(chunk.key for step in steps for chunk in step for _ in chunk.token_ids)
    assert counts == {b"a": 3, b"b": 1, b"c": 2}
    ids = {id_ for step in steps for chunk in step for id_ in chunk.token_ids}
    assert ids <= set(range(FIRST_ID, FIRST_ID + IDS))
    assert [chunk.finish_reason for step in steps for chunk in step if chunk.finish_reason] == [
        "length"
    ] * 3
