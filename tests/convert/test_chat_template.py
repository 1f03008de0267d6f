"""What comes with the chat template of a folder: code beside it, and damaged settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_convert.inspect import inspect
from nemotron_convert.source import chat_template
from nemotron_core.text.prompt import CHAT_TEMPLATE
from tests.convert.hf_folders import copy_tiny, set_template


def test_modules_in_the_current_folder_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = set_template(copy_tiny(tmp_path / "in"), CHAT_TEMPLATE)
    for name in ("jinja2.py", "json.py", "nemotron_convert.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    monkeypatch.chdir(folder)
    assert inspect(folder).refused_template == ""
    assert not (tmp_path / "was_run").exists()


def test_a_process_that_does_not_start_is_not_called_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "TRIAL_MODULE", "nemotron_convert.absent")
    folder = set_template(copy_tiny(tmp_path / "in"), CHAT_TEMPLATE)
    assert "cannot be tried: " in inspect(folder).refused_template
    assert "No module named nemotron_convert.absent" in inspect(folder).refused_template


@pytest.mark.parametrize("token", [{"lstrip": False}, {"content": 5}, ["<s>"], 7, None])
def test_tokens_without_a_text_count_as_absent(token: object, tmp_path: Path) -> None:
    folder = set_template(copy_tiny(tmp_path / "in"), CHAT_TEMPLATE, bos_token=token)
    assert inspect(folder).refused_template == ""


@pytest.mark.parametrize("entry", [{"name": [1]}, {}, "default", {"name": "default"}])
def test_entries_without_a_name_or_a_template_are_passed_over(
    entry: object, tmp_path: Path
) -> None:
    whole = {"name": "default", "template": CHAT_TEMPLATE.replace("capitalize", "upper") + "."}
    folder = set_template(copy_tiny(tmp_path / "in"), [entry, whole])
    assert "chat template gives" in inspect(folder).refused_template
