"""The folder of an evaluation: which server it belongs to, and what each benchmark gave."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_evaluate.suite.benchmark import Benchmark, Strict
from nemotron_evaluate.suite.items import Item, read_items, write_items
from nemotron_evaluate.writing import make_folder

RUN, ITEMS = "run.json", "items.jsonl"


class RunRecord(Strict):
    """What a run was begun with."""

    format_version: Literal[1] = 1
    server: dict[str, str | None]
    """Identity of the server: model, engine, checkpoint, template."""
    harnesses: dict[str, str]
    """SHA-256 of the lock of each harness's environment."""
    data: str | None
    """Folder of `--data`."""
    judge: str | None = None
    """Model that judges answers; `None` if there is none yet."""
    benchmarks: dict[str, Benchmark]


class RunFolder:
    """The folder of a run, `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self) -> RunRecord | None:
        """Return what the run was begun with, or `None` if there is no run.

        Raises `NemotronError` if it cannot be read.
        """
        path = self.path / RUN
        try:
            return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise NemotronError(
                f"not a run of an evaluation: {error}", where=path, remedy="name another folder"
            ) from error

    def joined(self, now: RunRecord) -> RunRecord:
        """Return the record to go on with: benchmarks and a judge may be added, not changed.

        Raises `NemotronError` that names what differs. What a server did not report in one of the
        runs is not compared.
        """
        before = self.record()
        if before is not None:
            differences = [
                *_differences("the server's", before.server, now.server),
                *_differences("the lock of", before.harnesses, now.harnesses),
                *(["--data"] if before.data != now.data else []),
                *_differences("the", {"judge": before.judge}, {"judge": now.judge}),
                *(
                    f"the benchmark {name}"
                    for name, benchmark in now.benchmarks.items()
                    if before.benchmarks.get(name, benchmark) != benchmark
                ),
            ]
            if differences:
                raise NemotronError(
                    f"the run was begun otherwise: {', '.join(differences)}",
                    where=self.path,
                    remedy="restore that, or name another folder",
                )
            now = now.model_copy(
                update={
                    "harnesses": before.harnesses | now.harnesses,
                    "benchmarks": before.benchmarks | now.benchmarks,
                    "judge": now.judge or before.judge,
                }
            )
        return now

    def begin(self, record: RunRecord) -> None:
        """Write what the run is begun with. Raises `NemotronError` if it cannot be written."""
        make_folder(self.path)
        write_atomically(self.path / RUN, record.model_dump_json(indent=2) + "\n")

    def folder(self, name: str) -> Path:
        """Return the folder of a benchmark, and make it. Raises `NemotronError` if that fails."""
        path = self.path / name
        make_folder(path)
        return path

    def items(self, name: str) -> list[Item] | None:
        """Return the items of a benchmark, or `None` if it did not come to its end.

        There are no items if its answers are not judged yet.
        """
        path = self.path / name / ITEMS
        return read_items(path) if path.exists() else None

    def finish(self, name: str, items: list[Item]) -> None:
        """Write the items of a benchmark, which ends it."""
        write_items(self.folder(name) / ITEMS, items)


def _differences(
    what: str,
    before: dict[str, str | None] | dict[str, str],
    now: dict[str, str | None] | dict[str, str],
) -> list[str]:
    return [
        f"{what} {name} was {_short(old)} and is {_short(new)}"
        for name in sorted(before.keys() & now.keys())
        if None not in (old := before[name], new := now[name]) and old != new
    ]


def _short(value: str | None) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "…"
