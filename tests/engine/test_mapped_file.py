"""A mapped file's pages are given back, and pages that were written stay."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from nemotron_engine.mapped_file import give_back
from tests.memory import resident

SIZE = 8 << 20


def test_pages_are_given_back_and_come_again(tmp_path: Path) -> None:
    path = tmp_path / "weights of a model.bin"
    content = os.urandom(SIZE)
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == content
        assert resident(path) == SIZE
        give_back(path)
        assert resident(path) == 0
        assert mapped[:] == content


def test_what_was_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(SIZE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:] = content = os.urandom(SIZE)
        give_back(path)
        assert mapped[:] == content
