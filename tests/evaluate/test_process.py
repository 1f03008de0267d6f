"""A harness's process: it ends with the command, also where its output cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_core.errors import NemotronError
from nemotron_evaluate.harnesses.process import run_harness

COMMAND = ["/bin/sh", "-c", "echo $$ > pid; echo said; exec sleep 600"]


def ended(folder: Path) -> bool:
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
    return True


def test_a_full_disk_ends_the_harness(tmp_path: Path) -> None:
    log = Path("/dev/full")
    with pytest.raises(NemotronError, match=r"No space left on device \[/dev/full\].*make room"):
        run_harness(COMMAND, folder=tmp_path, log=log, environment={})
    assert ended(tmp_path)


def test_a_log_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match="cannot write: Is a directory"):
        run_harness(COMMAND, folder=tmp_path, log=tmp_path, environment={})


def test_a_closed_stderr_ends_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as closed:
        monkeypatch.setattr("sys.stderr", closed)
        with pytest.raises(NemotronError, match=r"cannot write: Broken pipe \[stderr\]"):
            run_harness(COMMAND, folder=tmp_path, log=tmp_path / "log", environment={})
    assert ended(tmp_path)
    assert (tmp_path / "log").read_bytes() == b"said\n"
