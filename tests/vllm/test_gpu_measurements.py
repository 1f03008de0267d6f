"""The measurements for a GPU, tried on the CPU with a small model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.vllm.fixtures import PYTHON, ROOT


def test_one_rank(tmp_path: Path) -> None:
    result = tmp_path / "rank.json"
    command = [PYTHON, "-m", "bench.measurements.gpu.rank", result, "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(result.read_text())
    assert record["vllm"].startswith("0.")
    assert set(record["loads"]) == {"1x16", "4x16"}
    for load in record["loads"].values():
        for quantity in load.values():
            assert 0 < quantity["lowest"] <= quantity["median"] <= quantity["highest"]
