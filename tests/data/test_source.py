"""The formats of an input: files, folders, patterns and streams."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
import zstandard
from pyarrow import ipc, parquet

from nemotron_core.errors import NemotronError
from nemotron_data.options import Format
from nemotron_data.rows import formats
from nemotron_data.rows.parser import RowParser
from nemotron_data.rows.row import BadRow, Row
from nemotron_data.rows.source import Source

ROWS = [{"custom_id": "a", "prompt": "hi"}, {"custom_id": "b", "prompt": "Käse – お茶"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
TABLE = pyarrow.Table.from_pylist(ROWS)
Write = Callable[[Path], object]


def read(path: object, input_format: Format | None = None, **options: Any) -> list[Row | BadRow]:
    parser = RowParser(**options)
    with closing(Source(str(path), input_format)) as source:
        first, second = (
            [parser.parse(number, record) for _file, number, record in source.records()]
            for _ in range(2)
        )
    assert [repr(row) for row in first] == [repr(row) for row in second]
    return first


def prompts(rows: list[Row | BadRow]) -> list[str]:
    texts = []
    for row in rows:
        assert isinstance(row, Row), row
        texts.append(row.body.get("prompt") or row.body["messages"][-1]["content"])
    return texts


def write_stream(path: Path) -> None:
    with ipc.new_stream(path, TABLE.schema) as writer:
        writer.write_table(TABLE)


def write_file(path: Path) -> None:
    with ipc.new_file(path, TABLE.schema) as writer:
        writer.write_table(TABLE)


CSV = "custom_id,prompt\r\na,hi\r\nb,Käse – お茶\r\n".encode()


@pytest.mark.parametrize("name", ["rows", "rows.jsonl", "rows.wrong.gz"])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(JSONL),
        lambda path: path.write_bytes(b"\xef\xbb\xbf" + JSONL),
        lambda path: path.write_bytes(JSONL.replace(b"\n", b"\r\n\r\n").rstrip()),
        lambda path: path.write_text(json.dumps(ROWS)),
        lambda path: path.write_text("\n" + json.dumps(ROWS, indent=2)),
        lambda path: path.write_bytes(gzip.compress(JSONL[:9]) + gzip.compress(JSONL[9:])),
        lambda path: path.write_bytes(
            zstandard.compress(JSONL[:9]) + zstandard.compress(JSONL[9:])
        ),
        lambda path: path.write_bytes(bz2.compress(JSONL)),
        lambda path: path.write_bytes(lzma.compress(JSONL)),
        lambda path: parquet.write_table(TABLE, path),
        write_file,
        write_stream,
    ],
    ids=[
        "jsonl",
        "bom",
        "crlf",
        "array",
        "pretty",
        "gz",
        "zst",
        "bz2",
        "xz",
        "parquet",
        "arrow",
        "arrow-stream",
    ],
)
def test_recognised_by_its_content(write: Write, name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    rows = read(tmp_path / name)
    assert prompts(rows) == ["hi", "Käse – お茶"]
    assert [row.custom_id for row in rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", CSV),
        ("rows.csv.gz", gzip.compress(CSV)),
        ("rows.tsv.zst", zstandard.compress(CSV.replace(b",", b"\t"))),
        ("rows.txt", "hi\n\n  \nKäse – お茶\n".encode()),
    ],
)
def test_recognised_by_its_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert prompts(read(tmp_path / name)) == ["hi", "Käse – お茶"]


def test_a_csv_row_may_have_several_lines_and_a_wrong_one_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('id,question\n1,"a\nb, c"\nalone\n2,d\n')
    first, wrong, last = read(path, prompt="{{ id }}: {{ question }}")
    assert prompts([first, last]) == ["1: a\nb, c", "2: d"]
    assert isinstance(wrong, BadRow)
    assert (wrong.number, wrong.reason) == (4, "1 values for 2 columns")


def test_a_format_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(CSV)
    assert prompts(read(tmp_path / "rows", Format.CSV)) == ["hi", "Käse – お茶"]


def test_a_hugging_face_dataset(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "saved")
    assert prompts(read(tmp_path / "saved")) == ["hi", "Käse – お茶"]
    datasets.DatasetDict(train=dataset).save_to_disk(tmp_path / "splits")
    with pytest.raises(NemotronError, match="several splits"):
        read(tmp_path / "splits")
    assert prompts(read(tmp_path / "splits" / "train")) == ["hi", "Käse – お茶"]


def test_shards_by_pattern_and_by_folder(tmp_path: Path) -> None:
    first, second = JSONL.splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_bytes(second)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(first))
    (tmp_path / "notes.md").write_text("no rows")
    assert prompts(read(tmp_path / "*.jsonl*")) == ["hi", "Käse – お茶"]
    assert prompts(read(tmp_path)) == ["hi", "Käse – お茶"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(NemotronError, match="holds no file of rows"):
        read(tmp_path / "empty")
    with pytest.raises(NemotronError, match="the pattern fits only folders"):
        read(tmp_path / "em*")


def test_a_fifo_and_devices_are_read_to_their_end(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(gzip.compress(JSONL),))
    writer.start()
    assert prompts(read(fifo)) == ["hi", "Käse – お茶"]
    writer.join()
    script = (
        "import sys; from nemotron_data.rows.source import Source\n"
        "print(len([r for _ in '12' for r in Source(sys.argv[1]).records()][:2]))"
    )
    for name in ("-", "/dev/stdin"):
        command = [sys.executable, "-c", script, name]
        done = subprocess.run(command, input=JSONL, capture_output=True, check=True)
        assert done.stdout == b"2\n"


def test_one_line_that_is_too_long_is_one_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "LONGEST_LINE", 100)
    path = tmp_path / "rows.jsonl"
    for length in (101, 200, 201, 350):
        path.write_bytes(b"x" * (length - 1) + b"\n" + JSONL)
        long, *rows = read(path)
        assert isinstance(long, BadRow)
        assert (long.number, long.reason) == (1, "the line has more than 100 bytes")
        assert prompts(rows) == ["hi", "Käse – お茶"]
        assert [row.number for row in rows] == [2, 3]
    path.write_bytes(b'"' + b"x" * 97 + b'"\n')
    assert len(prompts(read(path))[0]) == 97
    path.write_bytes(b"x" * 250)
    assert isinstance(read(path)[0], BadRow)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", JSONL.decode().encode("utf-16"), "the text is UTF-16, not UTF-8"),
        ("a.jsonl", b"PK\3\4\0\0", "neither text nor a table: it begins with 50 4b 03 04"),
        (
            "a.csv",
            "prompt\ncaf\xe9\n".encode("latin-1"),
            "line 2 is not UTF-8: byte 0xe9 at column 4",
        ),
        ("a.csv", b"a,a\n1,2\n", "two columns have one name"),
        ("a.csv", b'a,b\n1,"x" y\n', "line 2"),
        ("a.json", b"[1, 2", "not a JSON array: Expecting"),
        ("a.parquet", b"PAR1 and no more", "not Parquet, or damaged"),
        ("a.arrow", b"ARROW1 and no more", "not Arrow, or damaged"),
        ("a.jsonl.gz", gzip.compress(JSONL)[:-3], "cannot read: Compressed file ended"),
        ("a.jsonl.zst", zstandard.compress(JSONL)[:-3], "cannot read: the last frame is cut off"),
        ("a.jsonl.zst", zstandard.compress(JSONL) + b"more", "not zstandard, or damaged"),
        ("a.jsonl.xz", lzma.compress(JSONL)[:-3], "cannot read: Compressed file ended"),
    ],
)
def test_one_sentence_about_what_cannot_be_read(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NemotronError, match=reason):
        read(tmp_path / name)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match="No such file"):
        Source(str(tmp_path / "nothing-*"))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet.write_table(TABLE, tmp_path / "rows")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NemotronError, match=r"pyarrow is not installed.*nemotron-triton\[data\]"):
        read(tmp_path / "rows")
