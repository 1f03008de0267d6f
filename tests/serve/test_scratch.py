"""The temporary files of servers: what a start removes, and what it must not."""

from __future__ import annotations

import secrets
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
    (folder / scratch.LOCK_NAME).touch()
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
