"""Tables for training made of results: a Parquet file, or a folder that Hugging Face can load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.files import partial_path, write_atomically
from nemotron_data.batch.manifest import Manifest
from nemotron_data.batch.target import Target
from nemotron_data.extra import require

BATCH_ROWS = 1000
"""Rows in memory at once."""
LICENSE = """\
The answers come from the model that is named above. Nemotron-4-340B is under the NVIDIA Open Model
License, under which NVIDIA claims no ownership of a model's outputs. Check the license of any other
model, and that of the input."""


def export(lines: Iterable[bytes], target: Target, manifest: Manifest, rows_per_file: int) -> None:
    """Write results as a Parquet file, or as the files of a folder with a card.

    Replaces an earlier table when the new one is complete. Raises `NemotronError` if it cannot be
    written.
    """
    rows = (row for line in lines for row in _rows(json.loads(line)))
    try:
        if not target.is_folder:
            partial = partial_path(target.path)
            _write(partial, rows)
            partial.replace(target.path)
            return
        data, partial = target.path / "data", target.path / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        count = 0
        while True:
            first = list(islice(rows, 1))
            if not first and count:
                break
            _write(partial / f"{count}.parquet", _chain(first, islice(rows, rows_per_file - 1)))
            count += 1
        for index in range(count):
            name = f"train-{index:05d}-of-{count:05d}.parquet"
            (partial / f"{index}.parquet").replace(partial / name)
        shutil.rmtree(data, ignore_errors=True)
        partial.replace(data)
        write_atomically(target.path / "README.md", card(manifest))
    except OSError as error:
        raise NemotronError(
            f"cannot write: {error.strerror or error}",
            where=target.path,
            remedy="the results are complete: make room and run the same command again",
        ) from error


def is_exported(target: Target) -> bool:
    """Return whether the table of a target is there and younger than the last of the results.

    A table is missing or older if the run that should have written it was killed, or found no room.
    """
    parts = ("data", "README.md") if target.is_folder else ("",)
    try:
        written = min((target.path / part).stat().st_mtime_ns for part in parts)
    except FileNotFoundError:
        return False
    return written >= target.results.stat().st_mtime_ns


def card(manifest: Manifest) -> str:
    """Return the card of a dataset: how it was made, and how many rows it has."""
    settings = {"seed": manifest.seed, **manifest.defaults}
    server = {name: value for name, value in manifest.server.items() if value is not None}
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        '  data_files: "data/*.parquet"',
        "---",
        "# Answers of a language model",
        "",
        f"{manifest.finished} of {manifest.rows} rows have an answer; {manifest.failed} failed.",
        "Made by `nemotron batch`.",
        "",
        "| | |",
        "|---|---|",
        f"| input | {Path(manifest.source).name} |",
        f"| SHA-256 of the input's rows | `{manifest.rows_sha256}` |",
        *(f"| {name} | `{value}` |" for name, value in settings.items()),
        *(f"| server's {name} | `{value}` |" for name, value in server.items()),
        "",
        "Columns: `custom_id`; `choice`, the number of the answer to its row; `text`;",
        "`finish_reason`; `prompt_tokens` and `completion_tokens` of all answers to the row;",
        "`metadata`, the input's other columns as JSON; `response`, the server's answer as JSON.",
        "",
        "## License",
        "",
        LICENSE,
        "",
    ]
    return "\n".join(lines)


def _rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each answer in a result."""
    body = result["response"]["body"]
    usage = body.get("usage") or {}
    metadata = result.get("metadata")
    for index, choice in enumerate(body["choices"]):
        message = choice.get("message") or {}
        text = choice.get("text") if "text" in choice else message.get("content")
        yield {
            "custom_id": result["custom_id"],
            "choice": index,
            "text": text if isinstance(text, str) else None,
            "finish_reason": choice.get("finish_reason"),
            "prompt_tokens": usage.get("prompt_tokens"),
            "completion_tokens": usage.get("completion_tokens"),
            "metadata": None if metadata is None else _json(metadata),
            "response": _json(body),
        }


def _json(content: object) -> str:
    text = json.dumps(content, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(content)
    return text


def _chain(first: Iterable[Any], rest: Iterable[Any]) -> Iterator[Any]:
    yield from first
    yield from rest


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    text, count = pyarrow.string(), pyarrow.int64()
    schema = pyarrow.schema(
        [
            ("custom_id", text),
            ("choice", count),
            ("text", text),
            ("finish_reason", text),
            ("prompt_tokens", count),
            ("completion_tokens", count),
            ("metadata", text),
            ("response", text),
        ]
    )
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(rows, BATCH_ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
