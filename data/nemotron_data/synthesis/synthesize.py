"""A recipe's steps: each reads the files before it and writes its own, so each can be resumed.

::

    1-prompts.jsonl     a row for each sample     from the seed rows
    2-answers.jsonl     the model's answers       a batch
    3-to-score.jsonl    prompt and answer         answers that differ
    4-scores.jsonl      the reward model's        a batch
    sft.jsonl, preferences.jsonl, report.json     what is kept
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.batch.job import BatchOptions, errors_path, run_batch
from nemotron_data.batch.manifest import manifest_path
from nemotron_data.synthesis.recipe import Recipe, exact_hash, load_recipe, prompts
from nemotron_data.synthesis.reward import read_scores, reward

RECIPE = "recipe.json"
PROMPTS, ANSWERS = "1-prompts.jsonl", "2-answers.jsonl"
TO_SCORE, SCORES = "3-to-score.jsonl", "4-scores.jsonl"
SFT, PREFERENCES, REPORT = "sft.jsonl", "preferences.jsonl", "report.json"
SAMPLE = "-sample-"
Messages = list[dict[str, str]]


class Report(BaseModel):
    """How many there were after each step."""

    prompts: int = 0
    samples: int = 0
    answers: int = 0
    truncated: int = 0
    empty: int = 0
    duplicates: int = 0
    scored: int = 0
    unreadable_scores: int = 0
    below_threshold: int = 0
    not_best: int = 0
    sft: int = 0
    preferences: int = 0


@dataclass(frozen=True)
class Scored:
    """An answer and what it is worth."""

    name: str
    prompt: Messages
    answer: str
    scores: dict[str, float]
    reward: float


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """How to run a recipe; nothing of it changes the data."""

    concurrency: int = 256
    patience: float = 600.0
    """Seconds."""
    skip_failed: bool = False
    """Go on without rows that fail for good."""


def synthesize(recipe_path: Path, folder: Path, options: SynthesisOptions) -> Report:
    """Run what is left of a recipe. NemotronError, or Interrupted, and the same call goes on."""
    recipe = load_recipe(recipe_path)
    rows = recipe_path.parent / recipe.generate.rows
    generate, score = recipe.generate, recipe.score
    report = Report()
    _check_recipe(recipe, folder)
    _write_lines(folder / PROMPTS, _sample_rows(recipe, rows, report))
    # Once scoring has begun the answers are settled, also those that were skipped.
    if not manifest_path(folder / SCORES).exists():
        batch = BatchOptions(
            source=str(folder / PROMPTS),
            output=str(folder / ANSWERS),
            url=generate.url,
            key_variable=generate.key_variable,
            defaults={
                "model": generate.model,
                "max_tokens": generate.max_tokens,
                "temperature": generate.temperature,
                "top_p": generate.top_p,
            },
            seed=recipe.seed,
        )
        _batch(batch, options)
    _write_lines(folder / TO_SCORE, _rows_to_score(recipe, folder, report))
    batch = BatchOptions(
        source=str(folder / TO_SCORE),
        output=str(folder / SCORES),
        url=score.url,
        key_variable=score.key_variable,
        defaults={"model": score.model},
        seed=None,
    )
    _batch(batch, options)
    _write_lines(folder / SFT, _chosen(recipe, folder, report))
    _write_lines(folder / PREFERENCES, _preferences(recipe, folder, report))
    write_atomically(folder / REPORT, report.model_dump_json(indent=2) + "\n")
    return report


def _check_recipe(recipe: Recipe, folder: Path) -> None:
    """Where the servers are may change, and what is kept; the rest makes other data."""
    server = {"url": True, "key_variable": True}
    kept = {"threshold": True, "best": True, "margin": True}
    same = recipe.model_dump_json(
        indent=2, exclude={"generate": server, "score": server, "keep": kept}
    )
    path = folder / RECIPE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = path.read_text(encoding="utf-8") if path.exists() else None
        is_new = not any(folder.iterdir())
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=folder) from error
    if before is None and not is_new:
        raise NemotronError(
            "the folder holds something that is no run of a recipe",
            where=folder,
            remedy="name another with -o",
        )
    if before is None:
        write_atomically(path, same)
    elif before != same:
        raise NemotronError(
            "the folder was begun with another recipe",
            where=path,
            remedy="restore that, or name another folder",
        )


def _batch(batch: BatchOptions, options: SynthesisOptions) -> None:
    """A step that asks a server; ordered, so that the next can read side by side."""
    output = Path(batch.output)
    counts = run_batch(
        replace(
            batch,
            ordered=True,
            concurrency=options.concurrency,
            patience=options.patience,
            title=output.name,
        )
    )
    if counts.failed and not options.skip_failed:
        raise NemotronError(
            f"{counts.failed} of {counts.failed + counts.finished} rows failed",
            where=errors_path(output),
            remedy="the same command tries them again, with --skip-failed it goes on without them",
        )


def _sample_rows(recipe: Recipe, rows: Path, report: Report) -> Iterator[object]:
    for name, messages in prompts(recipe, rows):
        report.prompts += 1
        for sample in range(recipe.generate.samples):
            report.samples += 1
            yield {"custom_id": f"{name}{SAMPLE}{sample}", "messages": messages}


def _rows_to_score(recipe: Recipe, folder: Path, report: Report) -> Iterator[object]:
    """Answers worth scoring, after the prompt they answer, as a reward model wants them."""
    seen: set[bytes] = set()
    for row, result in _side_by_side(folder / PROMPTS, folder / ANSWERS):
        report.answers += 1
        choice = result["response"]["body"]["choices"][0]
        answer = choice["message"]["content"] or ""
        key = exact_hash([row["messages"], answer])
        if choice["finish_reason"] == "length" and not recipe.keep.truncated:
            report.truncated += 1
        elif not answer.strip():
            report.empty += 1
        elif key in seen:
            report.duplicates += 1
        else:
            seen.add(key)
            answered = {"role": "assistant", "content": answer}
            yield {"custom_id": row["custom_id"], "messages": [*row["messages"], answered]}


def _scored(recipe: Recipe, folder: Path, report: Report) -> Iterator[Scored]:
    for row, result in _side_by_side(folder / TO_SCORE, folder / SCORES):
        *prompt, answer = row["messages"]
        try:
            scores = read_scores(result["response"]["body"]["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            report.unreadable_scores += 1
            continue
        report.scored += 1
        worth = reward(scores, recipe.score.weights)
        yield Scored(row["custom_id"], prompt, answer["content"], scores, worth)


def _chosen(recipe: Recipe, folder: Path, report: Report) -> Iterator[object]:
    for answers in _by_prompt(_scored(recipe, folder, report)):
        good = [one for one in answers if _is_good(one, recipe)]
        best = good[: recipe.keep.best]
        report.below_threshold += len(answers) - len(good)
        report.not_best += len(good) - len(best)
        report.sft += len(best)
        yield from map(_sft, best)


def _preferences(recipe: Recipe, folder: Path, report: Report) -> Iterator[object]:
    for answers in _by_prompt(_scored(recipe, folder, Report())):
        better, worse = answers[0], answers[-1]
        if _is_good(better, recipe) and better.reward - worse.reward > recipe.keep.margin:
            report.preferences += 1
            yield _preference(better, worse)


def _by_prompt(scored: Iterator[Scored]) -> Iterator[list[Scored]]:
    """Each prompt's answers, the best first."""
    for _prompt, group in itertools.groupby(scored, key=lambda one: _prompt_name(one.name)):
        yield sorted(group, key=lambda one: -one.reward)


def _prompt_name(name: str) -> str:
    return name.rpartition(SAMPLE)[0]


def _is_good(one: Scored, recipe: Recipe) -> bool:
    return recipe.keep.threshold is None or one.reward >= recipe.keep.threshold


def _answered(one: Scored) -> dict[str, str]:
    return {"role": "assistant", "content": one.answer}


def _sft(one: Scored) -> dict[str, Any]:
    return {
        "id": one.name,
        "messages": [*one.prompt, _answered(one)],
        "reward": one.reward,
        "scores": one.scores,
    }


def _preference(better: Scored, worse: Scored) -> dict[str, Any]:
    return {
        "id": _prompt_name(better.name),
        "prompt": better.prompt,
        "chosen": [_answered(better)],
        "rejected": [_answered(worse)],
        "chosen_reward": better.reward,
        "rejected_reward": worse.reward,
    }


def _side_by_side(rows: Path, results: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row that has a result, with it; both files are in the same order."""
    found = _read(results)
    result = next(found, None)
    for row in _read(rows):
        if result is not None and result["custom_id"] == row["custom_id"]:
            yield row, result
            result = next(found, None)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _write_lines(path: Path, lines: Iterable[object]) -> None:
    write_atomically(path, (json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
