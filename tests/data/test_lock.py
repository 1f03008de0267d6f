"""The lock on an output or a folder: one process at a time, and no file that stays open."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from nemotron_core.errors import NemotronError
from nemotron_data.batch.lock import LOCK, held
from nemotron_data.batch.results import ResultFile
from tests.data.outputs import ids, line, loaded


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


def test_a_folder_is_held_until_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    before = open_descriptors()
    with held(folder):
        with pytest.raises(NemotronError, match="another process is writing it"), held(folder):
            pass
        assert open_descriptors() == before + 1
    with held(folder):
        assert (folder / LOCK).exists()
    (tmp_path / "file").touch()
    with pytest.raises(NemotronError, match="cannot write: File exists"), held(tmp_path / "file"):
        pass
    assert open_descriptors() == before
