"""A short run of the fuzz target, always the same one."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.readers import run


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    done, refused, found = run(1, seconds=120, executions=300, findings=tmp_path)
    assert done == 300
    assert 100 < refused < 300  # some damage does not matter, and most does
    assert found == 0
