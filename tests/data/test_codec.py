"""Compressed outputs: how they are read and written."""

from __future__ import annotations

import gzip
import io
import os
import random
from pathlib import Path

import pytest

from nemotron_data.batch import codec as codec_module
from nemotron_data.batch.results import ResultFile
from tests.data.outputs import Clock, line


def test_a_gzip_file_is_read_across_the_pieces_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl.gz"
    members = [gzip.compress(line(name)) for name in "abcd"]
    path.write_bytes(b"".join(members) + b"\x1f\x8b")
    for read_size in [1, 7, len(members[0]), len(members[0]) + 1]:
        monkeypatch.setattr(codec_module, "READ_SIZE", read_size)
        with ResultFile(path) as results:
            assert list(results.lines()) == [line(name) for name in "abcd"]
    with ResultFile(path) as results:
        results.load()
    assert path.read_bytes() == b"".join(members)


def test_a_gzip_file_is_read_a_mebibyte_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few reads, and no more memory for a larger file."""
    path, sizes = tmp_path / "out.jsonl.gz", []
    members = [gzip.compress(line(f"{number}" * 200_000), compresslevel=0) for number in range(6)]

    class File(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            sizes.append(len(data))
            return data

    with ResultFile(path) as results:
        monkeypatch.setattr(Path, "open", lambda _path, _mode: File(b"".join(members)))
        assert sum(1 for _line in results.lines()) == 6
    assert sizes == [1 << 20, sum(map(len, members)) - (1 << 20), 0]


def test_lines_that_repeat_far_apart_are_read_back(tmp_path: Path) -> None:
    """A gzip member refers to text up to 32 KiB before."""
    path, generator = tmp_path / "out.jsonl.gz", random.Random(0)
    names = [generator.randbytes(15_500).hex(), "a"]
    with ResultFile(path, Clock()) as results:
        results.load()
        for name in names:
            results.append(line(name, names[0]))
    with ResultFile(path) as results:
        assert list(results.lines()) == [line(name, names[0]) for name in names]


def test_a_new_file_is_readable_by_all_and_compressed_as_gzip_does_it(tmp_path: Path) -> None:
    """At gzip's default level, and without a time of modification."""
    path, generator = tmp_path / "out.jsonl.gz", random.Random(0)
    text = line(" ".join(generator.choices(["tea", "team", "steam", "eat"], k=500)))
    umask = os.umask(0)
    try:
        with ResultFile(path) as results:
            results.load()
            results.append(text)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.read_bytes() == gzip.compress(text, compresslevel=6, mtime=0)


def test_a_gzip_member_is_written_when_it_is_large_or_due(
    tmp_path: Path, synced_sizes: list[int]
) -> None:
    """Large is a mebibyte of text."""
    clock, path = Clock(), tmp_path / "out.jsonl.gz"
    quarter = line("a" * ((1 << 18) - len(line(""))))
    assert len(quarter) == 1 << 18

    def written() -> int:
        return gzip.decompress(path.read_bytes()).count(b"\n")

    with ResultFile(path, clock) as results:
        results.load()
        assert results.is_empty
        for count, expected in [(3, 0), (1, 4), (3, 4), (2, 9)]:
            results.append(quarter * count)
            assert written() == expected
        results.append(line("a"))
        assert not results.is_empty
        assert synced_sizes == []
        clock.now += 1.0
        results.tick()
        assert written() == 10
        assert synced_sizes == [path.stat().st_size]
        results.append(line("a"))
    assert written() == 11
    assert synced_sizes[1:] == [path.stat().st_size]
