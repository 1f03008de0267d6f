"""The file of a reward model's head: what is read back, and what is refused."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nemotron_core.errors import NemotronError
from nemotron_core.reward import ATTRIBUTES, HEAD_NAME, WEIGHTS, RewardHead

HEAD = RewardHead(np.ones((9, 4), np.float32), np.zeros(9, np.float32))
BAD_NAMES: dict[str, tuple[str | None, str]] = {
    "no list": ("5", "attributes are no list of names"),
    "numbers": (json.dumps([1] * 9), "attributes are no list of names"),
    "text": ('"quality"', "attributes are no list of names"),
    "object": ("{}", "attributes are no list of names"),
    "twice": (json.dumps(["quality"] * 9), "9 weights and 1 names for 9 attributes"),
    "fewer": (json.dumps(ATTRIBUTES[:8]), "9 weights and 8 names for 8 attributes"),
    "not JSON": ("[", "cannot be read"),
    "missing": (None, "cannot be read"),
}
BAD_WEIGHTS: dict[str, tuple[str | None, str]] = {
    "text": (json.dumps(["x"] * 9), "weights are no list of finite numbers"),
    "no list": ("0.5", "weights are no list of finite numbers"),
    "bool": (json.dumps([True] * 9), "weights are no list of finite numbers"),
    "nan": (json.dumps([float("nan")] * 9), "weights are no list of finite numbers"),
    "infinity": (json.dumps([1e999] * 9), "weights are no list of finite numbers"),
    "huge": ("[1" + "0" * 400 + "]", "weights are no list of finite numbers"),
    "more": (json.dumps([*WEIGHTS, 1.0]), "10 weights and 9 names for 9 attributes"),
    "missing": (None, "cannot be read"),
}


def test_a_head_is_read_as_it_was_written(tmp_path: Path) -> None:
    HEAD.write(tmp_path)
    again = RewardHead.read(tmp_path)
    assert np.array_equal(again.weight, HEAD.weight)
    assert np.array_equal(again.bias, HEAD.bias)
    assert (again.attributes, again.weights) == (ATTRIBUTES, WEIGHTS)


@pytest.mark.parametrize(
    ("key", "name"),
    [("attributes", name) for name in BAD_NAMES] + [("weights", name) for name in BAD_WEIGHTS],
)
def test_a_damaged_head_is_refused(key: str, name: str, tmp_path: Path) -> None:
    value, message = (BAD_NAMES if key == "attributes" else BAD_WEIGHTS)[name]
    names = {"attributes": json.dumps(ATTRIBUTES), "weights": json.dumps(WEIGHTS)}
    names.pop(key)
    if value is not None:
        names[key] = value
    save_file({"weight": HEAD.weight, "bias": HEAD.bias}, tmp_path / HEAD_NAME, names)
    with pytest.raises(NemotronError, match=f"{message}.*convert the reward model again"):
        RewardHead.read(tmp_path)


def test_a_head_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / HEAD_NAME).mkdir()
    with pytest.raises(NemotronError, match="cannot write: Is a directory"):
        HEAD.write(tmp_path)


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(NemotronError, match="cannot write: File too large"):
            HEAD.write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
