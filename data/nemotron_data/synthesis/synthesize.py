"""The steps of a recipe; each reads the files of the steps before it, so each can be resumed.

::

    1-prompts.jsonl     a row for each sample     from the seed rows
    2-answers.jsonl     the model's answers       a batch
    3-to-score.jsonl    prompt and answer         from distinct answers
    4-scores.jsonl      the reward model's scores a batch
    sft.jsonl, preferences.jsonl, report.json     the training data and the counts
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.batch.accept import ANY
from nemotron_data.batch.job import Job
from nemotron_data.batch.target import Target
from nemotron_data.options import BatchOptions, SynthesisOptions, Value
from nemotron_data.synthesis.recipe import (
    Generate,
    Recipe,
    Score,
    content_hash,
    load_recipe,
    prompts,
)
from nemotron_data.synthesis.reward import read_scores, reward

RECIPE = "recipe.json"
PROMPTS, ANSWERS = "1-prompts.jsonl", "2-answers.jsonl"
TO_SCORE, SCORES = "3-to-score.jsonl", "4-scores.jsonl"
SFT, PREFERENCES, REPORT = "sft.jsonl", "preferences.jsonl", "report.json"
SAMPLE = "-sample-"
Messages = list[dict[str, str]]


class Report(BaseModel):
    """Numbers of prompts, samples and answers after each step."""

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
    """An answer with its scores and its reward."""

    name: str
    prompt: Messages
    answer: str
    scores: dict[str, float]
    reward: float


def synthesize(options: SynthesisOptions) -> Report:
    """Run the steps of a recipe that are not done yet, and return the report.

    After `NemotronError` or `Interrupted` the same call continues the run.
    """
    recipe, folder = load_recipe(options.recipe), options.output
    rows = options.recipe.parent / recipe.generate.rows
    generate, score = recipe.generate, recipe.score
    report = Report()
    _check_recipe(recipe, folder)
    _write_lines(folder / PROMPTS, _sample_rows(recipe, rows, report))
    defaults: dict[str, Value] = {
        "model": generate.model,
        "max_tokens": generate.max_tokens,
        "temperature": generate.temperature,
        "top_p": generate.top_p,
    }
    _run_batch(PROMPTS, ANSWERS, generate, defaults, recipe.seed, options)
    _write_lines(folder / TO_SCORE, _rows_to_score(recipe, folder, report))
    _run_batch(TO_SCORE, SCORES, score, {"model": score.model}, None, options)
    _write_lines(folder / SFT, _sft_rows(recipe, folder, report))
    _write_lines(folder / PREFERENCES, _preference_rows(recipe, folder, report))
    write_atomically(folder / REPORT, report.model_dump_json(indent=2) + "\n")
    return report


def _check_recipe(recipe: Recipe, folder: Path) -> None:
    """Raise `NemotronError` if the folder holds the data of another recipe.

    The servers' addresses and what is kept may change; every other setting changes the answers.
    """
    server = {"url": True, "key_variable": True}
    keep = {"threshold": True, "best": True, "margin": True}
    settings = recipe.model_dump_json(
        indent=2, exclude={"generate": server, "score": server, "keep": keep}
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
        write_atomically(path, settings)
    elif before != settings:
        raise NemotronError(
            "the folder was begun with another recipe",
            where=path,
            remedy="restore that, or name another folder",
        )


def _run_batch(
    source: str,
    output: str,
    server: Generate | Score,
    defaults: Mapping[str, Value],
    seed: int | None,
    options: SynthesisOptions,
) -> None:
    """Send the rows of the file `source`, and write the answers to `output` in the same order."""
    batch = BatchOptions(
        source=str(options.output / source),
        output=str(options.output / output),
        url=[server.url],
        seed=seed,
        accept=[ANY],  # the following step tells empty and cut answers apart
        ordered=True,
        concurrency=options.concurrency,
        patience=options.patience,
    )
    counts = Job(batch, defaults, key_variables=(server.key_variable,), title=output).run()
    if counts.failed and not options.skip_failed:
        raise NemotronError(
            f"{counts.failed} of {counts.failed + counts.finished} rows failed",
            where=Target(options.output / output).errors,
            remedy="the same command tries them again, with --skip-failed it goes on without them",
        )


def _sample_rows(recipe: Recipe, rows: Path, report: Report) -> Iterator[object]:
    for name, messages in prompts(recipe, rows):
        report.prompts += 1
        for sample in range(recipe.generate.samples):
            report.samples += 1
            yield {"custom_id": f"{name}{SAMPLE}{sample}", "messages": messages}


def _rows_to_score(recipe: Recipe, folder: Path, report: Report) -> Iterator[object]:
    """Yield a conversation for each distinct answer: its prompt, then the answer."""
    seen: set[bytes] = set()
    for row, result in _side_by_side(folder / PROMPTS, folder / ANSWERS):
        report.answers += 1
        choice = result["response"]["body"]["choices"][0]
        answer = choice["message"]["content"] or ""
        key = content_hash([row["messages"], answer])
        if choice["finish_reason"] == "length" and not recipe.keep.truncated:
            report.truncated += 1
        elif not answer.strip():
            report.empty += 1
        elif key in seen:
            report.duplicates += 1
        else:
            seen.add(key)
            messages = [*row["messages"], _assistant(answer)]
            yield {"custom_id": row["custom_id"], "messages": messages}


def _scored(recipe: Recipe, folder: Path, report: Report) -> Iterator[Scored]:
    for row, result in _side_by_side(folder / TO_SCORE, folder / SCORES):
        *prompt, answer = row["messages"]
        try:
            scores = read_scores(result["response"]["body"]["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            report.unreadable_scores += 1
            continue
        report.scored += 1
        total = reward(scores, recipe.score.weights)
        yield Scored(row["custom_id"], prompt, answer["content"], scores, total)


def _sft_rows(recipe: Recipe, folder: Path, report: Report) -> Iterator[object]:
    for answers in _by_prompt(_scored(recipe, folder, report)):
        good = [answer for answer in answers if _is_good(answer, recipe)]
        best = good[: recipe.keep.best]
        report.below_threshold += len(answers) - len(good)
        report.not_best += len(good) - len(best)
        report.sft += len(best)
        for scored in best:
            yield {
                "id": scored.name,
                "messages": [*scored.prompt, _assistant(scored.answer)],
                "reward": scored.reward,
                "scores": scored.scores,
            }


def _preference_rows(recipe: Recipe, folder: Path, report: Report) -> Iterator[object]:
    for answers in _by_prompt(_scored(recipe, folder, Report())):
        best, worst = answers[0], answers[-1]
        if _is_good(best, recipe) and best.reward - worst.reward > recipe.keep.margin:
            report.preferences += 1
            yield {
                "id": _prompt_name(best.name),
                "prompt": best.prompt,
                "chosen": [_assistant(best.answer)],
                "rejected": [_assistant(worst.answer)],
                "chosen_reward": best.reward,
                "rejected_reward": worst.reward,
            }


def _by_prompt(answers: Iterator[Scored]) -> Iterator[list[Scored]]:
    """Yield the answers of each prompt, ranked by reward."""
    for _prompt, group in itertools.groupby(answers, key=lambda scored: _prompt_name(scored.name)):
        yield sorted(group, key=lambda scored: -scored.reward)


def _prompt_name(name: str) -> str:
    return name.rpartition(SAMPLE)[0]


def _is_good(scored: Scored, recipe: Recipe) -> bool:
    return recipe.keep.threshold is None or scored.reward >= recipe.keep.threshold


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _side_by_side(rows: Path, results: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each row that has a result, and the result; both files are in the same order."""
    remaining = _read(results)
    result = next(remaining, None)
    for row in _read(rows):
        if result is not None and result["custom_id"] == row["custom_id"]:
            yield row, result
            result = next(remaining, None)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _write_lines(path: Path, lines: Iterable[object]) -> None:
    write_atomically(path, (json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
