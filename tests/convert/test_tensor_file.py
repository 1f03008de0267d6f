"""The safetensors writer against the safetensors library, in any order of writing."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes  # noqa: F401 - gives NumPy the type bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file

from nemotron_convert.safetensors_header import TensorSpec
from nemotron_convert.target.tensor_file import ALIGNMENT, TensorFile, read_header
from nemotron_core.errors import NemotronError

SPECS = {
    "matrix": TensorSpec("BF16", (6, 10)),
    "vector": TensorSpec("BF16", (7,)),
    "pages": TensorSpec("BF16", (4, 2048)),
    "scale": TensorSpec("F32", ()),
}
WORDS = {
    name: np.arange(spec.nbytes // 2, dtype=np.uint16) for name, spec in SPECS.items() if spec.shape
}
SCALE = np.array([[0.25]], np.float32)


@contextmanager
def opened(path: Path) -> Iterator[TensorFile]:
    file = TensorFile(path, SPECS)
    file.open()
    try:
        yield file
    finally:
        file.close()


def parts() -> list[tuple[str, int, int, np.ndarray]]:
    """All tensors in parts (name, row, column, values): halves of rows, whole rows, a scalar."""
    matrix, pages = WORDS["matrix"].reshape(6, 10), WORDS["pages"].reshape(4, 2048)
    return [
        *(("matrix", row, 0, matrix[row : row + 2, :4]) for row in range(0, 6, 2)),
        *(("matrix", row, 4, matrix[row : row + 3, 4:]) for row in range(0, 6, 3)),
        ("vector", 0, 0, WORDS["vector"].reshape(1, 7)),
        *(("pages", row, 0, pages[row : row + 1]) for row in range(4)),
        ("scale", 0, 0, SCALE),
    ]


def check(path: Path) -> None:
    """The library reads what was written, and `read_header` finds it."""
    tensors = load_file(path)
    assert tensors.keys() == SPECS.keys()
    for name, words in WORDS.items():
        assert tensors[name].shape == SPECS[name].shape
        assert tensors[name].tobytes() == words.tobytes()
    assert tensors["scale"] == np.float32(0.25)
    header = read_header(path)
    assert {name: stored.spec for name, stored in header.items()} == SPECS
    assert header["matrix"].offset % ALIGNMENT == 0
    data = path.read_bytes()
    for name, words in WORDS.items():
        start = header[name].offset
        assert data[start : start + SPECS[name].nbytes] == words.tobytes()


@pytest.mark.parametrize("seed", range(6))
def test_parts_in_any_order(seed: int, tmp_path: Path) -> None:
    """The hash is that of the file, whether bytes were hashed when written or read again."""
    path = tmp_path / "a.safetensors"
    pieces = parts()
    if seed:  # seed 0 is the order of the file
        random.Random(seed).shuffle(pieces)
    with opened(path) as file:
        for name, row, column, values in pieces:
            file.write(name, row, column, values)
            if seed % 2 and file.can_hash:
                file.hash_some(lambda: False)
        for name in SPECS:
            file.finish(name)
        entry = file.entry()
    assert entry.size == path.stat().st_size
    assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    check(path)


def test_only_complete_tensors_without_a_gap_are_hashed(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as file:
        file.finish("vector")
        assert not file.can_hash  # the matrix before it is not complete
        file.finish("matrix")
        assert file.can_hash
        file.hash_some(lambda: True)  # stopped before the first byte
        assert file.can_hash
        file.hash_some(lambda: False)
        assert not file.can_hash
        with pytest.raises(AssertionError, match="a is not whole"):
            file.entry()


def test_an_earlier_runs_tensors_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with opened(path) as file:
        for name, row, column, values in parts():
            file.write(name, row, column, values)
    with opened(path):
        pass
    check(path)


def spoiled(old: object, new: object) -> bytes:
    """A file of one matrix whose header has `new` instead of `old`."""
    entry = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}
    assert old in (*entry.values(), entry)
    header = json.dumps({"a": {k: new if v == old else v for k, v in entry.items()}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


HEADERS = {
    "dtype": (spoiled("BF16", "F4"), "has dtype F4"),
    "size": (spoiled([0, 8], [0, 6]), "has offsets"),
    "negative": (spoiled([0, 8], [-8, 0]), r"and offsets \[-8, 0\]"),
    "gap": (spoiled([0, 8], [8, 16]) + bytes(8), "a begins at byte .*, not at"),
    "bytes behind it": (spoiled([0, 8], [0, 8]) + b"x", "the tensors end at byte .*, the file at"),
    "a name twice": ((13).to_bytes(8, "little") + b'{"a":1,"a":2}', "a name comes twice"),
    "beyond the end": (spoiled([0, 8], [8, 16]), "has offsets"),
    "no shape": (spoiled([2, 2], None), "not a whole safetensors file"),
    "length": ((1 << 40).to_bytes(8, "little") + b"{}", "the header has 1099511627776 bytes"),
    "empty": (b"", "not a whole safetensors file"),
    "not JSON": ((2).to_bytes(8, "little") + b"{]", "not a whole safetensors file"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_header_is_refused(name: str, tmp_path: Path) -> None:
    data, message = HEADERS[name]
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(NemotronError, match=message):
        read_header(tmp_path / "a")


def test_a_header_that_just_fits(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(spoiled([0, 8], [0, 8]))
    assert read_header(tmp_path / "a")["a"].spec == TensorSpec("BF16", (2, 2))
