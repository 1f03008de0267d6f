"""Tests of the free memory, with files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_core import memory
from nemotron_core.memory import free_memory

FREE = 5000 << 10


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the control groups; the machine has 5000 KiB free."""
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:  5000 kB\n")
    monkeypatch.setattr(memory, "MEMORY_FILE", machine)
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "own")
    return tmp_path


def limit(folder: Path, limit: str, used: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.stat").write_text(f"anon {used}\nfile 700\n")


def test_this_machine() -> None:
    assert free_memory() > 0


def test_a_container(groups: Path) -> None:
    """It sees its own group as the outermost."""
    (groups / "own").write_text("0::/\n")
    assert free_memory() == FREE
    limit(groups, "max", 100)
    assert free_memory() == FREE
    limit(groups, "1000", 100)
    assert free_memory() == 900
    limit(groups, "50", 100)
    assert free_memory() == 0


def test_a_job_within_others(groups: Path) -> None:
    """Slurm and systemd limit a group that lies in others; the least of them counts."""
    (groups / "own").write_text("1:name=systemd:/elsewhere\n0::/system.slice/job_7/step_0\n")
    limit(groups / "elsewhere", "1", 0)
    job = groups / "system.slice" / "job_7"
    limit(job, "1000", 100)
    assert free_memory() == 900
    limit(job / "step_0", "max", 0)
    assert free_memory() == 900
    limit(job / "step_0", "800", 100)
    assert free_memory() == 700


def test_a_group_outside_of_the_container(groups: Path) -> None:
    (groups / "own").write_text("0::/../../job_7\n")
    assert free_memory() == FREE
