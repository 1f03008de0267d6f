"""What a person sees of a batch on a terminal."""

from __future__ import annotations

import pytest

from nemotron_data.batch.progress import Display


def test_the_table_at_the_end_stands_below_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display("batch") as display:
        display.begin(2, 0)
        display.print_table("batch", {"rows with a result": "2 of 2"})
    text = capsys.readouterr().err
    assert 0 < text.rindex("━") < text.rindex("2 of 2")
