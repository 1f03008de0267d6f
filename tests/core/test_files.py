"""Files are complete or not there; their sizes and hashes are those of their bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_core.errors import NemotronError
from nemotron_core.files import (
    READ_SIZE,
    hash_file,
    partial_path,
    text_digest,
    write_atomically,
)


@pytest.mark.parametrize("texts", ["new \N{HONEYBEE}\n", ["new ", "\N{HONEYBEE}\n"]])
def test_a_file_is_replaced_by_the_new_one(tmp_path: Path, texts: str | list[str]) -> None:
    path = tmp_path / "file.json"
    for _ in range(2):
        write_atomically(path, texts)
        assert path.read_bytes() == "new \N{HONEYBEE}\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> Iterator[str]:
        yield "new" * 100_000
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted())
    assert path.read_text() == "old"
    write_atomically(path, "new")  # what the interrupted write has left is no obstacle
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_not_seen_before_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def texts() -> Iterator[str]:
        yield "a"
        assert not path.exists()
        yield "b"

    write_atomically(path, texts())
    assert path.read_text() == "ab"


def test_a_write_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(NemotronError, match="cannot write: No such file or directory") as caught:
        write_atomically(path, "new")
    assert caught.value.where == path
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(NemotronError, match="cannot write: Is a directory") as caught:
        write_atomically(folder, "new")
    assert caught.value.where == folder


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    partial_path(path).symlink_to("/dev/full")
    with pytest.raises(NemotronError, match="cannot write: No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize("size", [0, 1, READ_SIZE - 1, READ_SIZE, 2 * READ_SIZE + 7])
def test_the_hash_of_a_file_and_the_report_of_its_bytes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    data = bytes(number % 251 for number in range(size))
    path.write_bytes(data)
    reports: list[int] = []
    entry = hash_file(path, reports.append)
    assert (entry.size, entry.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert sum(reports) == size
    assert all(0 < report <= READ_SIZE for report in reports)
    assert hash_file(path) == entry


@given(data=st.binary())
def test_the_digest_of_a_text_is_that_of_its_bytes(data: bytes) -> None:
    """Also of file names that are not UTF-8, which Python spells with lone surrogates."""
    text = data.decode(errors="surrogateescape")
    assert text_digest(text) == hashlib.sha256(data).hexdigest()


def test_a_file_system_that_cannot_flush_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_a_disk_that_cannot_flush_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(NemotronError, match="cannot write: Input/output error"):
        write_atomically(tmp_path / "file", "new")
    assert not (tmp_path / "file").exists()
