"""Which rows of an input are left, from what an output holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from nemotron_data.batch.plan import Counts, Plan
from nemotron_data.batch.results import KEY, Keys
from nemotron_data.rows.parser import RowParser
from nemotron_data.rows.row import BadRow, Row
from nemotron_data.rows.source import Source


class Output:
    """The results of rows that were answered before."""

    def __init__(self) -> None:
        self.names: dict[bytes, str] = {}

    @property
    def keys(self) -> Keys:
        return np.frombuffer(b"".join(self.names), KEY)

    def custom_ids(self, keys: Keys) -> list[str]:
        data = keys.tobytes()
        return [self.names[data[start : start + 16]] for start in range(0, len(data), 16)]


def plan(folder: Path, rows: Sequence[Any], output: Output | None = None) -> Plan:
    output = output or Output()
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with closing(Source(str(path))) as source:
        return Plan(source, RowParser(), output.keys, output.custom_ids)


def answered(made: Plan) -> Output:
    output = Output()
    output.names = {row.key: row.custom_id for row in made.rows() if isinstance(row, Row)}
    return output


def ids(made: Plan) -> list[str | None]:
    return [row.custom_id for row in made.rows()]


def named(*names: str, text: str = "x") -> list[dict[str, str]]:
    return [{"custom_id": name, "prompt": text} for name in names]


def test_a_new_input_is_left_as_a_whole(tmp_path: Path) -> None:
    made = plan(tmp_path, [*named("a", "b"), 7])
    assert made.counts == Counts(rows=3, bad=1, kept=0, new=2, changed=0, removed=0)
    assert [row.number for row in made.rows()] == [1, 2, 3]
    assert plan(tmp_path, []).counts.rows == 0


def test_appended_changed_and_removed_rows(tmp_path: Path) -> None:
    output = answered(plan(tmp_path, named("a", "b", "c", "d")))
    assert list(plan(tmp_path, named("a", "b", "c", "d"), output).rows()) == []
    made = plan(tmp_path, [*named("d", "a"), *named("b", text="y"), *named("e")], output)
    assert made.counts == Counts(rows=4, bad=0, kept=2, new=1, changed=1, removed=1)
    assert ids(made) == ["b", "e"]
    assert sorted(output.custom_ids(made.stale)) == ["b", "c"]


def test_rows_without_an_id_may_move(tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in "xyz"]
    output = answered(plan(tmp_path, rows))
    made = plan(tmp_path, [{"prompt": "new"}, *reversed(rows)], output)
    assert made.counts == Counts(rows=4, bad=0, kept=3, new=1, changed=0, removed=0)


def test_equal_rows_without_an_id_are_asked_each(tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in "xyxx"]
    made = plan(tmp_path, rows)
    first, other, second, third = ids(made)
    assert (second, third) == (f"{first}-2", f"{first}-3")
    assert other != first
    output = answered(made)
    assert len(output.names) == 4
    assert plan(tmp_path, rows, output).counts.kept == 4
    assert ids(plan(tmp_path, [*rows, {"prompt": "x"}], output)) == [f"{first}-4"]


def test_the_second_of_two_ids_is_bad_and_names_both_lines(tmp_path: Path) -> None:
    rows = [*named("a", "b", "a"), *named("a", text="y")]
    made = plan(tmp_path, rows)
    assert made.counts == Counts(rows=4, bad=2, kept=0, new=2, changed=0, removed=0)
    first, second, third, fourth = made.rows()
    assert isinstance(third, BadRow)
    assert isinstance(fourth, BadRow)
    assert "lines 1 and 3" in third.reason
    assert "lines 1 and 4" in fourth.reason
    output = answered(made)
    again = plan(tmp_path, rows, output)
    assert again.counts == Counts(rows=4, bad=2, kept=2, new=0, changed=0, removed=0)
    assert [row.number for row in again.rows()] == [3, 4]
    assert (first.custom_id, second.custom_id) == ("a", "b")


def test_positions_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = [{"prompt": str(number)} for number in range(50)]
    made = plan(tmp_path, rows)
    keys = answered(made).keys
    order = np.random.default_rng(0).permutation(50)
    assert made.positions(keys[order]).tolist() == order.tolist()


def test_the_rows_name_their_file_if_there_are_several(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n7\n")
    with closing(Source(str(tmp_path))) as source:
        made = Plan(source, RowParser(), Output().keys, Output().custom_ids)
        places = [(Path(str(row.file)).name, row.number) for row in made.rows()]
    assert places == [("a.jsonl", 1), ("a.jsonl", 2), ("b.jsonl", 1), ("b.jsonl", 2)]
    assert plan(tmp_path, [{"prompt": "x"}]).counts.rows == 1


def test_reading_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "x"}\n' * 45_000)
    reports: list[int] = []
    with closing(Source(str(path))) as source:
        Plan(source, RowParser(), Output().keys, Output().custom_ids, reports.append)
    assert reports == [20_000, 40_000]
