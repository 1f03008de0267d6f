"""The output of a batch: when it is written and made durable, and what a torn end leaves."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from nemotron_core.errors import NemotronError
from nemotron_data.batch import codec as codec_module
from nemotron_data.batch.request import row_seed
from nemotron_data.batch.results import KEY, Keys, ResultFile
from nemotron_data.rows.compression import ZstdFile


def key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def line(name: str, text: str = "Tee – お茶") -> bytes:
    content = {"id": f"batch_req_{key(name).hex()}", "custom_id": name, "text": text}
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def ids(*names: str) -> list[bytes]:
    return [key(name) for name in names]


def loaded(results: ResultFile) -> list[bytes]:
    keys = results.load()
    return [keys[index : index + 1].tobytes() for index in range(len(keys))]


def positions_of(*names: str) -> Callable[[Keys], Any]:
    """Return the positions that `ResultFile.sort` needs for the order of `names`."""
    order = {key(name): position for position, name in enumerate(names)}

    def positions(keys: Keys) -> Any:
        return np.array([order[keys[i : i + 1].tobytes()] for i in range(len(keys))])

    return positions


def keys_of(*names: str) -> Keys:
    return np.frombuffer(b"".join(ids(*names)), KEY)


def decompress(data: bytes) -> bytes:
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    return ZstdFile(io.BytesIO(data)).read()


def compress(name: str, data: bytes) -> bytes:
    return zstandard.compress(data) if name.endswith(".zst") else gzip.compress(data)


def test_a_line_torn_at_any_byte_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    whole, torn = line("a") + line("b"), line("c")
    path.write_bytes(torn[:-1])
    with ResultFile(path) as results:
        assert loaded(results) == []
    assert path.read_bytes() == b""
    for length in range(len(torn)):
        path.write_bytes(whole + torn[:length])
        with ResultFile(path) as results:
            assert loaded(results) == ids("a", "b")
            results.append(line("d"))
        assert path.read_bytes() == whole + line("d")


@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.jsonl.zst"])
def test_a_member_torn_at_any_byte_is_cut(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    whole, torn = (
        compress(name, line("a") + line("b")),
        compress(name, line("c") + line("d")),
    )
    for length in range(len(torn)):
        path.write_bytes(whole + torn[:length])
        with ResultFile(path) as results:
            assert loaded(results) == ids("a", "b")
            results.append(line("c"))
        assert decompress(path.read_bytes()) == line("a") + line("b") + line("c")


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"])
def test_sorted_like_the_rows_and_still_open(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with ResultFile(path) as results:
        results.load()
        for custom_id in ["c", "a", "d", "b"]:
            results.append(line(custom_id))
        results.sort(positions_of("a", "b", "c", "d", "e"))
        results.append(line("e"))
    with ResultFile(path) as results:
        assert loaded(results) == ids("a", "b", "c", "d", "e")
        assert list(results.lines()) == [line(custom_id) for custom_id in "abcde"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"])
def test_results_move_to_the_end_of_another_file(name: str, tmp_path: Path) -> None:
    path, side = tmp_path / name, tmp_path / "side.jsonl"
    side.write_bytes(line("x"))
    with ResultFile(path) as results:
        results.load()
        for custom_id in "abcd":
            results.append(line(custom_id))
        results.sync()
        assert results.custom_ids(keys_of("c", "a")) == ["a", "c"]
        results.move(keys_of("c", "a"), side)
        assert side.read_bytes() == line("x") + line("a") + line("c")
        results.append(line("e"))
    with ResultFile(path) as results:
        assert loaded(results) == ids("b", "d", "e")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "side.jsonl"])


def test_an_error_leaves_no_new_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for content in [None, b""]:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match="stop"), ResultFile(path) as results:
            results.load()
            raise ValueError("stop")
        assert path.exists() is (content is not None)
    with pytest.raises(ValueError, match="stop"), ResultFile(path) as results:
        results.load()
        results.append(line("a"))
        raise ValueError("stop")
    assert path.read_bytes() == line("a")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("out.jsonl", b"hello\nworld", "line 1 is not a result"),
        ("out.jsonl", line("a") + b"{}\n" + line("b"), "line 2"),
        ("out.jsonl", b'{"custom_id": 7}\n', "line 1"),
        ("out.jsonl", line("a").replace(key("a").hex().encode(), b"z" * 32), "an id is not"),
        ("out.jsonl.zst", b"hello", "byte 0 is not zstandard"),
        ("out.jsonl", line("a") + line("b") + line("a"), "'a' is there twice"),
        ("out.jsonl.gz", b"hello", "byte 0 is not gzip"),
        ("out.jsonl.gz", gzip.compress(line("a")) + b"\0\0", "is not gzip"),
        ("out.jsonl.gz", zlib.compress(line("a")), "byte 0 is not gzip"),
    ],
)
def test_what_is_no_output_is_left_alone(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with ResultFile(path) as results, pytest.raises(NemotronError, match=reason):
        results.load()
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_whole_output_is_left_untouched(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(line("a")) if name.endswith(".gz") else line("a"))
    os.utime(path, ns=(0, 0))
    with ResultFile(path) as results:
        assert loaded(results) == ids("a")
    assert path.stat().st_mtime_ns == 0


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


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def synced_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of the file at each call of `os.fsync`."""
    sizes: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    return sizes


def test_a_plain_line_is_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResultFile(path, Clock()) as results:
        assert loaded(results) == []
        for count in (1, 2, 3):
            results.append(line("a"))
            assert path.read_bytes() == line("a") * count


def test_it_is_made_durable_every_second_and_at_the_end(
    tmp_path: Path, synced_sizes: list[int]
) -> None:
    clock, size = Clock(), len(line("a"))
    with ResultFile(tmp_path / "out.jsonl", clock) as results:
        results.load()
        results.append(line("a"))
        clock.now += 0.75
        results.tick()
        assert synced_sizes == []
        clock.now += 0.25
        results.tick()
        assert synced_sizes == [size]
        clock.now += 0.75
        results.append(line("b"))
        assert synced_sizes == [size]
        clock.now += 0.75
        results.append(line("c"))
        assert synced_sizes == [size, 3 * size]
    assert synced_sizes == [size, 3 * size, 3 * size]


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


def test_a_disk_that_fails_to_sync_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "out.jsonl"
    results = ResultFile(path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(NemotronError, match=r"Input/output error .*out\.jsonl"):
            results.close()
    with ResultFile(path):
        pass  # the lock was released all the same


def test_a_write_may_take_several_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr("os.write", lambda descriptor, data: write(descriptor, data[:3]))
    path = tmp_path / "out.jsonl"
    with ResultFile(path) as results:
        results.load()
        results.append(line("a"))
    assert path.read_bytes() == line("a")


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_write_that_fails_leaves_whole_lines(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / name, os.write
    torn = gzip.compress(line("c")) if name.endswith(".gz") else line("c")
    with ResultFile(path) as results:
        results.load()
        results.append(line("a"))
        results.sync()
    path.write_bytes(path.read_bytes() + torn[:-1])

    def write_a_part(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr("os.write", fail)
        return write(descriptor, data[:5])

    def fail(_descriptor: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with ResultFile(path) as results:
        assert loaded(results) == ids("a")
        results.append(line("b"))
        results.sync()
        whole = path.read_bytes()
        monkeypatch.setattr("os.write", write_a_part)
        with pytest.raises(NemotronError, match=r"cannot write: No space left .* make room"):
            results.append(line("d"))
            results.sync()
        assert path.read_bytes() == whole
    with ResultFile(path) as results:
        assert loaded(results) == ids("a", "b")


def test_a_sorted_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for names, is_replaced in [("ab", False), ("ba", True)]:
        path.unlink(missing_ok=True)
        with ResultFile(path) as results:
            results.load()
            for name in names:
                results.append(line(name))
            before = path.stat().st_ino
            results.sort(positions_of("a", "b"))
        assert (path.stat().st_ino != before) is is_replaced
        assert path.read_bytes() == line("a") + line("b")


def test_the_rest_of_a_killed_sort_is_removed(tmp_path: Path) -> None:
    path, partial = tmp_path / "out.jsonl", tmp_path / ".partial-out.jsonl"
    partial.write_bytes(line("z"))
    with ResultFile(path) as results:
        results.load()
        for name in "ba":
            results.append(line(name))
        results.sort(positions_of("a", "b"))
    assert path.read_bytes() == line("a") + line("b")
    assert not partial.exists()


def test_a_sort_without_room_is_an_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    with ResultFile(path) as results:
        results.load()
        for name in "ba":
            results.append(line(name))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr(Path, "replace", lambda _path, _target: os.stat("/none"))  # noqa: PTH116
        with pytest.raises(NemotronError, match=r"No such file.*nothing written is lost"):
            results.sort(positions_of("a", "b"))
    assert path.read_bytes() == line("b") + line("a")


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_that_is_replaced_or_removed_before_the_lock_is_opened_again(
    is_replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other, lock = tmp_path / "out.jsonl", tmp_path / "other", fcntl.flock
    path.write_bytes(line("old"))
    other.write_bytes(line("new"))
    before = open_descriptors()

    def change_and_lock(descriptor: int, operation: int) -> None:
        if other.exists() and is_replaced:
            other.replace(path)
        elif other.exists():
            other.unlink()
            path.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", change_and_lock)
    with ResultFile(path) as results:
        assert loaded(results) == (ids("new") if is_replaced else [])
        results.append(line("b"))
        assert open_descriptors() == before + 1
    assert path.read_bytes() == (line("new") if is_replaced else b"") + line("b")


def test_a_file_that_cannot_be_locked_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    before = open_descriptors()
    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(NemotronError, match="cannot write: No locks available"):
        ResultFile(tmp_path / "out.jsonl")
    assert open_descriptors() == before


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


def test_no_file_stays_open_when_the_output_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResultFile(path):
        before = open_descriptors()
        with pytest.raises(NemotronError):
            ResultFile(path)
        assert open_descriptors() == before
    with pytest.raises(NemotronError, match="cannot write: Is a directory"):
        ResultFile(tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResultFile(path), pytest.raises(NemotronError, match="another process is writing it"):
        ResultFile(path)
    with ResultFile(path) as results:
        assert results.is_empty


def test_seeds_are_the_rows_own() -> None:
    assert row_seed(0, "question-1") == 280154119006244  # as documented: it must never change
    seeds = {row_seed(run, f"row-{row}") for run in range(2) for row in range(500)}
    assert len(seeds) == 1000
    assert max(seeds) < 1 << 48
