"""Every measurement starts, and a cheap one makes a record."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from bench.measurements.__main__ import MEASUREMENTS, main
from bench.measurements.records import RESULTS
from bench.measurements.timing import in_turn


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_imports_and_parses_its_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(import_module(f"bench.measurements.{name}").measure)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--work" in text and "--json" in text
    assert ("--runs" in text) == (MEASUREMENTS[name].runs is not None)


def test_the_list_and_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(MEASUREMENTS)
    with pytest.raises(SystemExit) as ended:
        main(["none"])
    assert ended.value.code == 2


def test_a_measurement_writes_its_record(
    checkpoint_tp8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in RESULTS.iterdir()}
    out = tmp_path / "record.json"
    arguments = ["fp8_accuracy", str(checkpoint_tp8), "--answers", "10", "--json", str(out)]
    assert main(arguments) == 0
    assert str(out) in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["measurement"] == "fp8_accuracy"
    assert record["machine"]["cores"] > 0
    assert record["date"].startswith("20")
    assert record["versions"]["numpy"]
    assert record["arguments"] == {"checkpoint": ["checkpoint"], "answers": 10}
    (row,) = record["results"]["rows"]
    assert (row["dtype"], row["answers"]) == ("bf16", 10)
    assert row["exact_answers"] >= 9
    assert {path: path.read_bytes() for path in RESULTS.iterdir()} == before


def test_runs_take_turns() -> None:
    turns = list(in_turn(3, ["a", "b", "c"]))
    assert "".join(name for _, name in turns) == "abcbcacab"
    assert [run for run, _ in turns] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
