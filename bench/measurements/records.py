"""Records: the results of one measurement with its machine, date, commit and arguments."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
"""Folder of the committed records, one JSON file each."""


@dataclass(frozen=True)
class Record:
    """One measurement. Early records have no date and commit, some no versions: `None`."""

    measurement: str
    """Name by which `python -m bench.measurements` runs it."""
    machine: dict[str, Any]
    date: str | None
    """Start of the measurement in UTC, ISO 8601."""
    commit: str | None
    """Commit of the measured code; ends in `-dirty` if the working tree differed from it."""
    versions: dict[str, str] | None
    """Versions of the libraries, by name."""
    arguments: dict[str, Any]
    """Options of the measurement; of paths, only the last part."""
    results: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> Record:
        """Read a committed record by the name of its file."""
        return cls(**json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def conditions(record: Record) -> str:
    """Return the machine and the number of runs of a record as one line."""
    machine, runs = record.machine, record.arguments["runs"]
    count = "one run" if runs == 1 else f"{runs} runs, median (lowest–highest)"
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory'] / 2**30:.0f} GiB, "
        f"Python {machine['python']}; {count}."
    )
