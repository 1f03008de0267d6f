"""The temporary files of servers: what a start removes, and what it must not."""

from __future__ import annotations

import mmap
import os
import secrets
import time
import uuid
from pathlib import Path

import pytest

from nemotron_serve import scratch

NAME = "nemotron-"


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scratch, "_parent", lambda: tmp_path)
    monkeypatch.setattr(scratch, "SHARED_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    return tmp_path


def left_behind(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    (folder / scratch.LOCK_NAME).write_bytes(scratch.LOCK_TEXT)
    return folder


def test_a_running_server_and_its_memory_stay(parent: Path) -> None:
    dead = left_behind(parent, NAME + secrets.token_hex(4))
    with scratch.scratch_folder() as alive:
        memory = parent / "shm" / f"{alive.name}-region"
        memory.touch()
        scratch.remove_leftovers()
        assert memory.exists()
        assert (alive / scratch.LOCK_NAME).exists()
    assert not dead.exists()
    assert not memory.exists()
    assert not alive.exists()


def test_a_name_with_wildcards_names_nothing_else(parent: Path) -> None:
    left_behind(parent, NAME + "*")
    others = parent / "shm" / f"{NAME}abc-region"
    others.touch()
    scratch.remove_leftovers()
    assert others.exists()
    assert not (parent / (NAME + "*")).exists()


def test_links_and_other_users_folders_stay(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = left_behind(parent, "elsewhere")
    (parent / (NAME + "link")).symlink_to(elsewhere)
    foreign = left_behind(parent, NAME + "foreign")
    scratch.remove_leftovers()
    assert (elsewhere / scratch.LOCK_NAME).exists()
    assert not foreign.exists()
    foreign = left_behind(parent, NAME + "foreign")
    monkeypatch.setattr("os.geteuid", lambda: foreign.stat().st_uid + 1)
    scratch.remove_leftovers()
    assert foreign.exists()


def aged(path: Path) -> Path:
    """Make a file or folder older than a server takes to begin."""
    past = time.time() - 2 * scratch.START_SECONDS
    os.utime(path, (past, past))
    return path


def test_what_was_killed_before_it_held_its_lock(parent: Path) -> None:
    begins, dead = parent / (NAME + "begins_1"), parent / (NAME + "killed_1")
    for folder in (begins, dead):
        folder.mkdir()
        (folder / scratch.UNNAMED_LOCK).touch()
    aged(dead)
    assert scratch.remove_leftovers() == [dead]
    assert begins.exists()


def memory(parent: Path, name: str) -> Path:
    """Return where Triton puts shared memory of the server whose folder has this name."""
    return parent / "shm" / f"{NAME}{name}-{uuid.uuid4()}"


def test_memory_without_a_folder_goes_unless_it_is_used(parent: Path) -> None:
    unused, used, young = (memory(parent, name) for name in ("unused_1", "inside_1", "recent_1"))
    for file in (unused, used, young):
        file.write_bytes(b"x")
    aged(unused)
    with used.open("r+b") as file, mmap.mmap(file.fileno(), 1):
        aged(used)
        assert scratch.remove_leftovers() == [unused]
        assert used.exists()
    assert young.exists()
    (parent / f"{NAME}inside_1").mkdir()  # of a server that others' processes serve
    assert scratch.remove_leftovers() == []
    (parent / f"{NAME}inside_1").rmdir()
    assert scratch.remove_leftovers() == [used]


def test_what_people_call_nemotron_stays(parent: Path) -> None:
    """Weights in /tmp or staged in /dev/shm, with names like those of servers' own."""
    theirs = []
    for folder in (parent, parent / "shm"):
        for name in ("340b-texts", "instruct", "instruct-bf16"):
            place = folder / (NAME + name)
            place.mkdir()
            theirs.append(place / "weights")
        theirs.append(folder / f"{NAME}instruct.nemo")
    for file in theirs:
        file.touch()
        aged(file)
        aged(file.parent)
    (parent / f"{NAME}instruct" / "lock").touch()
    aged(parent / f"{NAME}instruct")
    assert scratch.remove_leftovers() == []
    assert all(file.exists() for file in theirs)
