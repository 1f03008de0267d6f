"""A short run of the fuzzer with a fixed seed; see `readers` for long runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_convert.source.nemo import Source
from tests.convert.nemo import NEMO
from tests.fuzz.readers import fuzz

RUNS = 300
pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled", "ignore:Duplicate name"
)


def test_whatever_the_bytes_a_checkpoint_or_one_error(tmp_path: Path) -> None:
    outcomes = fuzz(0, iter(range(RUNS)), tmp_path)
    assert [path.read_text() for path in tmp_path.glob("*.txt")] == []
    assert outcomes["found"] == 0
    # Many checkpoints are read and many refused: the faults are neither all fatal nor harmless.
    assert min(outcomes["read"], outcomes["refused"]) > RUNS // 10


def test_what_is_no_refusal_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> Source:
        raise KeyError(path.name)

    monkeypatch.setattr("tests.fuzz.readers.Source.open", fail)
    assert fuzz(0, iter(range(2)), tmp_path)["found"] == 2
    assert (tmp_path / "0-1.nemo").stat().st_size < 2 * NEMO.stat().st_size
    assert "KeyError: 'running.nemo'" in (tmp_path / "0-1.txt").read_text()
