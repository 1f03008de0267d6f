"""A suite: the benchmarks that one run does, read from a YAML file.

`card.yaml` is the suite of the model card. In a suite of the user's own, a benchmark with a name
of the card has the card's settings, and what the suite says about it comes before them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nemotron_core.errors import NemotronError
from nemotron_evaluate.suite.benchmark import Benchmark, Strict

CARD = "card"
"""Name of the model card's own suite on the command line."""
CARD_FILE = Path(__file__).with_name("card.yaml")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
"""Form of a benchmark's name, which is also the name of its folder in a run."""


class Suite(Strict):
    """Benchmarks by name, in the order in which they run."""

    benchmarks: dict[str, Benchmark]


def load_suite(name: str) -> Suite:
    """Return the suite of a file, or that of the model card for the name `card`.

    Raises `NemotronError` for what cannot be read or is not a suite.
    """
    card = _read(CARD_FILE)
    if name == CARD:
        return _suite(card, CARD_FILE)
    path = Path(name)
    content = _read(path)
    wanted = content.get("benchmarks") if isinstance(content, dict) else None
    if isinstance(wanted, list):
        wanted = dict.fromkeys(map(str, wanted))
    if not isinstance(wanted, dict) or not wanted:
        raise NemotronError(
            "there are no benchmarks",
            where=path,
            remedy=f"name some: benchmarks: [{', '.join(list(card['benchmarks'])[:3])}]",
        )
    known = card["benchmarks"]
    merged = {
        str(key): (known.get(key) or {}) | (value if value is not None else {})
        for key, value in wanted.items()
        if _is_mapping(value, key, path)
    }
    unknown = [key for key, value in wanted.items() if value is None and key not in known]
    if unknown:
        raise NemotronError(
            f"{', '.join(unknown)} is no benchmark of the card",
            where=path,
            remedy=f"the card has {', '.join(known)}; describe others with task and scores",
        )
    return _suite(content | {"benchmarks": merged}, path)


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise NemotronError(
            f"no readable suite: {error}",
            where=path,
            remedy=f"name a YAML file, or `{CARD}` for the model card's benchmarks",
        ) from error


def _is_mapping(value: object, name: object, path: Path) -> bool:
    if value is None or isinstance(value, dict):
        return True
    raise NemotronError(f"{name} has no settings but {value!r}", where=path)


def _suite(content: dict[str, Any], path: Path) -> Suite:
    try:
        suite = Suite.model_validate(content)
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(map(str, reason['loc']))}: {reason['msg']}" for reason in error.errors()
        )
        raise NemotronError(f"no suite: {reasons}", where=path) from error
    if bad := [name for name in suite.benchmarks if not NAME.fullmatch(name)]:
        raise NemotronError(
            f"{bad[0]!r} is no name of a benchmark",
            where=path,
            remedy="use small letters, digits, dots and hyphens",
        )
    return suite.model_copy(
        update={
            "benchmarks": {
                name: _with_absolute_file(benchmark, path.parent)
                for name, benchmark in suite.benchmarks.items()
            }
        }
    )


def _with_absolute_file(benchmark: Benchmark, folder: Path) -> Benchmark:
    if benchmark.file is None:
        return benchmark
    path = (folder / benchmark.file).absolute()
    if not path.is_file():
        raise NemotronError("the task's file does not exist", where=path)
    return benchmark.model_copy(update={"task": str(path)})
