"""The formats of an input: how each is recognised, and how its records are read.

A record is the bytes of a line of JSON, a text, a table's row as a dictionary, or a `BadRow` if it
cannot be read as any of them. Each comes with its number, from 1: of the line in text formats, of
the element or row in the others.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import IO, Any

from nemotron_core.errors import NemotronError
from nemotron_data.extra import require
from nemotron_data.options import Format
from nemotron_data.rows.row import BadRow

Record = bytes | str | dict[str, Any] | BadRow
Records = Iterator[tuple[int, Record]]

LONGEST_LINE = 16 << 20
"""Length in bytes, with the newline."""
SNIFF_BYTES = 4096
"""Bytes at the beginning of a file that decide about its format."""
TABLE_ROWS = 1000
"""Rows of a Parquet or Arrow file in memory at once."""


SUFFIXES = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".txt": Format.TEXT,
    ".parquet": Format.PARQUET,
    ".arrow": Format.ARROW,
}
"""Formats by the suffix of a file, after that of its compression. The content decides first."""
COMPRESSED_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
MAGIC = {
    b"PAR1": Format.PARQUET,
    b"ARROW1": Format.ARROW,
    b"\xff\xff\xff\xff": Format.ARROW,
}
ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def recognise(start: bytes, name: str) -> Format:
    """Return the format of a file from its first `SNIFF_BYTES` and, if these fit several, its name.

    Raises `NemotronError` for a file that is no text and none of the binary formats.
    """
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            return kind
    encoding = next((name for bom, name in ENCODINGS.items() if start.startswith(bom)), None)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    is_json = text[:1] in (b"{", b"[", b'"')
    if encoding is not None or (b"\0" in start and not is_json):
        what = f"the text is {encoding}, not UTF-8" if encoding else "neither text nor a table"
        raise NemotronError(
            f"{what}: it begins with {start[:4].hex(' ')}",
            where=name,
            remedy="give JSONL, JSON, CSV, TSV or text in UTF-8, Parquet or Arrow",
        )
    if text.startswith(b"["):
        return Format.JSON
    path = PurePath(name)
    if path.suffix in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    return SUFFIXES.get(path.suffix.lower(), Format.JSONL)


def read_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | BadRow]]:
    """Yield each line that is not blank; a line of more than `LONGEST_LINE` bytes is a bad row."""
    readline = file.readline
    for number in itertools.count(1):
        line = readline(LONGEST_LINE + 1)
        if not line:
            return
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = readline(LONGEST_LINE)
            reason = f"the line has more than {LONGEST_LINE:,} bytes"
            yield number, BadRow(number, None, reason, "write a shorter request")
        elif not line.isspace():
            yield number, line


def _read_texts(file: IO[bytes]) -> Records:
    for number, line in read_lines(file):
        if isinstance(line, BadRow):
            yield number, line
            continue
        try:
            yield number, line.decode().strip()
        except UnicodeDecodeError as error:
            yield number, not_utf8(number, error)


def not_utf8(number: int, error: UnicodeDecodeError) -> BadRow:
    """Return the bad row of a line that is not UTF-8."""
    byte, column = error.object[error.start], error.start + 1
    reason = f"not UTF-8: byte 0x{byte:02x} at column {column}"
    return BadRow(number, None, reason, "convert the file, for example with iconv -t UTF-8")


def _decoded_lines(file: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is {not_utf8(number, error).reason}") from error


def _read_array(file: IO[bytes]) -> Records:
    """Read a JSON array, which is held in memory."""
    try:
        elements = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON array: {' '.join(str(error).split())}") from error
    for number, element in enumerate(elements, 1):
        if isinstance(element, dict | str):
            yield number, element
        else:
            yield number, json.dumps(element).encode()


def _read_table_of(delimiter: str) -> Callable[[IO[bytes]], Records]:
    def read(file: IO[bytes]) -> Records:
        csv.field_size_limit(LONGEST_LINE)
        reader = csv.reader(_decoded_lines(file), delimiter=delimiter, strict=True)
        try:
            columns = next(reader, [])
            if len(set(columns)) < len(columns):
                raise ValueError(f"two columns have one name: {', '.join(columns)}")
            for values in reader:
                number = reader.line_num
                if len(values) == len(columns):
                    yield number, dict(zip(columns, values, strict=True))
                elif values:
                    reason = f"{len(values)} values for {len(columns)} columns"
                    yield number, BadRow(number, None, reason, "quote values with a delimiter")
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error

    return read


def _read_parquet(file: IO[bytes]) -> Records:
    pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    try:
        batches = parquet.ParquetFile(file).iter_batches(batch_size=TABLE_ROWS)
        yield from _table_rows(batches)
    except pyarrow.ArrowException as error:
        raise ValueError(f"not Parquet, or damaged: {error}") from error


def _read_arrow(file: IO[bytes]) -> Records:
    pyarrow, ipc = require("pyarrow"), require("pyarrow.ipc")
    try:
        start = file.read(6)
        file.seek(0)
        if start == b"ARROW1":
            reader = ipc.open_file(file)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = iter(ipc.open_stream(file))
        yield from _table_rows(batches)
    except pyarrow.ArrowException as error:
        raise ValueError(f"not Arrow, or damaged: {error}") from error


def _table_rows(batches: Iterator[Any]) -> Records:
    numbers = itertools.count(1)
    for batch in batches:
        for start in range(0, batch.num_rows, TABLE_ROWS):
            for row in batch.slice(start, TABLE_ROWS).to_pylist():
                yield next(numbers), row


READERS: dict[Format, Callable[[IO[bytes]], Records]] = {
    Format.JSONL: read_lines,
    Format.JSON: _read_array,
    Format.CSV: _read_table_of(","),
    Format.TSV: _read_table_of("\t"),
    Format.TEXT: _read_texts,
    Format.PARQUET: _read_parquet,
    Format.ARROW: _read_arrow,
}
"""The reader of each format. It raises `ValueError` if a file is not of the format."""
