"""The output of a batch: when it is written and made durable, and what a torn end leaves."""

from __future__ import annotations

import errno
import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemotron_core.errors import NemotronError
from nemotron_data.batch.results import Keys, ResultFile
from tests.data.outputs import Clock, compress, decompress, ids, key, keys_of, line, loaded


def positions_of(*names: str) -> Callable[[Keys], Any]:
    """Return the positions that `ResultFile.sort` needs for the order of `names`."""
    order = {key(name): position for position, name in enumerate(names)}

    def positions(keys: Keys) -> Any:
        return np.array([order[keys[i : i + 1].tobytes()] for i in range(len(keys))])

    return positions


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
