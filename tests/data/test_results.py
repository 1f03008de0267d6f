"""The output after a bad end: what is whole stays, what is torn goes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nemotron_core.errors import NemotronError
from nemotron_data.batch.manifest import row_seed
from nemotron_data.batch.results import ResultFile
from nemotron_data.rows import digest


def line(name: str) -> bytes:
    content = {"custom_id": name, "text": "Tee – お茶"}
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def ids(*names: str) -> set[int]:
    return {digest(name) for name in names}


def test_a_line_torn_at_any_byte_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    whole, torn = line("a") + line("b"), line("c")
    for length in range(len(torn)):
        path.write_bytes(whole + torn[:length])
        with ResultFile(path) as results:
            assert results.load() == ids("a", "b")
            results.append(line("d"))
        assert path.read_bytes() == whole + line("d")


def test_a_gzip_member_torn_at_any_byte_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.gz"
    whole, torn = gzip.compress(line("a") + line("b")), gzip.compress(line("c") + line("d"))
    for length in range(len(torn)):
        path.write_bytes(whole + torn[:length])
        with ResultFile(path) as results:
            assert results.load() == ids("a", "b")
            results.append(line("c"))
        assert gzip.decompress(path.read_bytes()) == line("a") + line("b") + line("c")


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_sorted_like_the_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    names = ["c", "a", "d", "b"]
    numbers = {digest(name): place for place, name in enumerate(sorted(names))}
    with ResultFile(path) as results:
        results.load()
        for one in names:
            results.append(line(one))
        results.sort(numbers)
    with ResultFile(path) as results:
        assert [custom_id for custom_id, _line in results.read()] == sorted(names)
        assert results.load() == ids(*names)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("out.jsonl", b"hello\nworld", "line 1, which ends at byte 6, is not a result"),
        ("out.jsonl", line("a") + b"{}\n" + line("b"), "line 2"),
        ("out.jsonl", line("a") + line("b") + line("a"), "'a' is there twice"),
        ("out.jsonl.gz", b"hello", "byte 0 is not gzip"),
        ("out.jsonl.gz", gzip.compress(line("a")) + b"\0\0", "is not gzip"),
    ],
)
def test_what_is_no_output_is_left_alone(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with ResultFile(path) as results, pytest.raises(NemotronError, match=reason):
        results.load()
    assert path.read_bytes() == content


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResultFile(path), pytest.raises(NemotronError, match="another process is writing it"):
        ResultFile(path)
    with ResultFile(path) as results:
        assert results.is_empty


def test_seeds_are_the_rows_own() -> None:
    assert row_seed(0, "question-1") == 280154119006244  # as documented: it must never change
    seeds = {row_seed(run, f"row-{row}") for run in range(2) for row in range(500)}
    assert len(seeds) == 1000
    assert max(seeds) < 1 << 48
