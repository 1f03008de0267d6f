"""TFEval: the two F1 scores of topic following, over a file of judged turns.

CantTalkAboutThis (Sreedhar et al. 2024) leads conversations away from their topic. Each turn of the
user is a distractor or on topic, and the model takes it as one of them: it turns it down, or
answers it. No harness for it is packaged, so the file says both of each turn.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest
from nemotron_evaluate.harnesses.lm_eval_data import read_rows
from nemotron_evaluate.harnesses.setting import Harness, Setting
from nemotron_evaluate.suite.benchmark import Benchmark, Data
from nemotron_evaluate.suite.items import Item

NAME = "tfeval"
CLASSES = ("distractor", "on-topic")
"""What a turn is, in the columns `label` and `prediction`."""
HIT, MISS = (1.0, 1.0), (0.0,)
"""Values of which F1 is the mean: 2 TP / (2 TP + FP + FN)."""


def check(benchmark: Benchmark, setting: Setting) -> None:
    """Raise `NemotronError` if the file is missing or has another form."""
    run(benchmark, setting)


def run(benchmark: Benchmark, setting: Setting) -> list[Item]:
    """Return an item for each conversation. See `Harness`."""
    if setting.data is None:
        raise AssertionError("a run without data has no such benchmark")
    path = setting.data / f"{setting.name}.jsonl"
    turns: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, row in enumerate(read_rows(path, benchmark.data or Data(columns=())), 1):
        for column in ("label", "prediction"):
            if row[column] not in CLASSES:
                raise NemotronError(
                    f"{column} is {row[column]!r}",
                    where=f"{path}, line {number}",
                    remedy=f"write {' or '.join(CLASSES)}",
                )
        turns[str(row["conversation"])].append(row)
    names = list(turns)[: benchmark.limit]
    items = [_item(benchmark, name, turns[name]) for name in names]
    _check_classes(benchmark, items, path)
    return items


HARNESS = Harness(None, check, run, needs_data=True)


def f1_values(turns: list[dict[str, Any]], name: str) -> tuple[float, ...]:
    """Return the values of which the F1 of a class is the mean.

    >>> f1_values([{"label": "a", "prediction": "a"}, {"label": "a", "prediction": "b"}], "a")
    (1.0, 1.0, 0.0)
    """
    values: tuple[float, ...] = ()
    for turn in turns:
        named = (turn["label"], turn["prediction"]).count(name)
        values += (HIT if named == 2 else MISS) if named else ()
    return values


def _item(benchmark: Benchmark, name: str, turns: list[dict[str, Any]]) -> Item:
    return Item(
        name=f"{benchmark.task}/{name}",
        content=text_digest(" ".join(turn["label"] for turn in turns)),
        values={key: f1_values(turns, score.metric) for key, score in benchmark.scores.items()},
    )


def _check_classes(benchmark: Benchmark, items: list[Item], path: Path) -> None:
    for key, score in benchmark.scores.items():
        if not any(item.values[key] for item in items):
            raise NemotronError(
                f"no turn is {score.metric}, or was taken so",
                where=path,
                remedy=f"the classes of turns are {' and '.join(CLASSES)}",
            )
