"""Tasks of lm-eval over files of the user's own, for machines that reach no hub.

The harness's file of a task stays as it is; a file of ours includes it and names other data.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import IO, Any

import yaml

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_evaluate.suite.benchmark import Benchmark, Data
from nemotron_evaluate.writing import make_folder

TASKS = "tasks"
"""Folder of the tasks' files, and of their rows, in the folder of a benchmark."""
OWN_KEYS = {"dataset_name": None, "training_split": None, "validation_split": None,
            "fewshot_split": None, "fewshot_config": None}  # fmt: skip
"""Keys that a task over one local file does not have."""


def local_tasks(
    name: str, benchmark: Benchmark, data: Path, package: Path, folder: Path
) -> list[str]:
    """Write the tasks' files of a benchmark over `data/NAME.jsonl` and return their paths.

    `package` is the harness's installed package. Raises `NemotronError` if the file is missing or
    does not fit the benchmark.
    """
    settings = benchmark.data
    if settings is None:
        raise NemotronError(
            f"{name} says nothing of its data",
            where="--data",
            remedy="add data to the benchmark, or use a task's file of your own",
        )
    if benchmark.shots:
        raise NemotronError(
            f"{name} has examples before its questions, for which there are no data",
            where="--data",
            remedy="set shots to 0, or leave --data out",
        )
    path = data / f"{name}.jsonl"
    rows = read_rows(path, settings)
    target = folder / TASKS
    make_folder(target)
    paths = []
    for part, part_rows in _parts(rows, settings).items():
        source = package / "tasks" / settings.tasks.format(part)
        if not source.is_file():
            raise NemotronError(
                f"the harness has no task for {settings.by} {part!r}", where=f"{path}: {source}"
            )
        part_data = path
        if settings.by is not None:
            part_data = target / f"{part}.jsonl"
            write_atomically(part_data, (json.dumps(row) + "\n" for row in part_rows))
        task = target / (f"{part}.yaml" if settings.by is not None else f"{name}.yaml")
        write_atomically(task, yaml.safe_dump(_task(source, part_data, settings)))
        paths.append(str(task))
    return paths


def _task(source: Path, rows: Path, settings: Data) -> dict[str, Any]:
    return {
        "include": str(source),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {settings.split: str(rows.absolute())}},
        **OWN_KEYS,
    }


def read_rows(path: Path, settings: Data) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file, which may be gzipped.

    Raises `NemotronError` if it cannot be read or a row lacks a column.
    """
    needed = set(settings.columns)
    rows = []
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                missing = needed - row.keys() if isinstance(row, dict) else needed
                if missing:
                    raise NemotronError(
                        f"a row has no {', '.join(sorted(missing))}", where=f"{path}, line {number}"
                    )
                rows.append(row)
    except OSError as error:
        raise NemotronError(
            f"no data: {error.strerror}",
            where=path,
            remedy=f"put a JSONL file there with the columns {', '.join(settings.columns)}",
        ) from error
    except ValueError as error:
        raise NemotronError(f"not JSONL: {error}", where=path) from error
    if not rows:
        raise NemotronError("there are no rows", where=path)
    return rows


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _parts(rows: list[dict[str, Any]], settings: Data) -> dict[str, list[dict[str, Any]]]:
    if settings.by is None:
        return {"": rows}
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        # A subject is a word of a file's name.
        parts[str(row[settings.by]).strip().lower().replace(" ", "_")].append(row)
    return dict(sorted(parts.items()))
