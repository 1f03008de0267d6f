"""Outputs that exist: which option fits, and replacing them without losing one."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_core.errors import NemotronError
from nemotron_core.existing import replacing, require_choice
from nemotron_core.folder import unfinished_folder

MARKER = "manifest.json"


def finished(folder: Path, content: str = "old") -> Path:
    folder.mkdir()
    (folder / MARKER).write_text(content)
    return folder


def test_what_is_there_decides_which_options_fit(tmp_path: Path) -> None:
    require_choice(tmp_path / "new", MARKER, "checkpoint", can_resume=True)
    with pytest.raises(NemotronError, match=r"--reuse keeps it.*--overwrite replaces it"):
        require_choice(finished(tmp_path / "done"), MARKER, "checkpoint")
    (tmp_path / "half.partial").mkdir()
    (tmp_path / "half.partial" / "rank0").touch()
    with pytest.raises(NemotronError, match="--resume goes on from it, --overwrite begins again"):
        require_choice(tmp_path / "half", MARKER, "checkpoint", can_resume=True)
    require_choice(tmp_path / "half", MARKER, "engine")  # an engine's part is worth nothing


def test_a_part_that_is_being_written_is_not_an_interrupted_one(tmp_path: Path) -> None:
    with unfinished_folder(tmp_path / "out", keep=False) as folder:
        (folder / "rank0").touch()
        require_choice(tmp_path / "out", MARKER, "checkpoint", can_resume=True)


def test_an_output_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    output = finished(tmp_path / "out")
    with replacing(output, MARKER):
        finished(output, "new")
    assert (output / MARKER).read_text() == "new"
    assert list(tmp_path.iterdir()) == [output]


def test_an_output_comes_back_if_there_is_no_new_one(tmp_path: Path) -> None:
    output = finished(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), replacing(output, MARKER):
        raise KeyboardInterrupt
    assert (output / MARKER).read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_after_a_kill_the_old_output_waits_for_the_next_run(tmp_path: Path) -> None:
    output = tmp_path / "out"
    finished(tmp_path / "out.replaced")
    with pytest.raises(KeyboardInterrupt), replacing(output, MARKER):
        raise KeyboardInterrupt
    assert (output / MARKER).read_text() == "old"
    output.rename(tmp_path / "out.replaced")
    with replacing(output, MARKER):
        finished(output, "new")
    assert (output / MARKER).read_text() == "new"
    assert list(tmp_path.iterdir()) == [output]


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    with (
        pytest.raises(NemotronError, match=r"has no manifest\.json, so it is not replaced"),
        replacing(tmp_path / "photos", MARKER),
    ):
        pass
    (tmp_path / "photos").rename(tmp_path / "new.replaced")
    with (
        pytest.raises(NemotronError, match=r"new\.replaced"),
        replacing(tmp_path / "new", MARKER),
    ):
        pass
    (tmp_path / "link").symlink_to(finished(tmp_path / "out"))
    with (
        pytest.raises(NemotronError, match="symbolic link"),
        replacing(tmp_path / "link", MARKER),
    ):
        pass
    with replacing(tmp_path / "none", MARKER):
        assert not (tmp_path / "none").exists()


def test_folders_without_a_name_have_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished(tmp_path / "out") / "..")
    for output in (Path(), Path("/")):
        require_choice(output, MARKER, "checkpoint", can_resume=True)
    monkeypatch.chdir(tmp_path / "out")
    with replacing(Path(), MARKER):
        finished(tmp_path / "out", "new")
    assert (tmp_path / "out" / MARKER).read_text() == "new"
