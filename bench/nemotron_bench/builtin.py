"""The project's own load generator, with a progress bar."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nemotron_bench.load import Level, Load, Outcome, Prompts
from nemotron_bench.results import LevelResult, measure
from nemotron_bench.settings import BenchSettings
from nemotron_bench.targets import Target


def run_level(
    settings: BenchSettings, target: Target, prompts: Prompts, level: Level
) -> LevelResult:
    """Run one load, after the warm-up requests. See `run.Generator`."""
    with _progress() as progress:
        requests = settings.requests_of(level)
        task = progress.add_task(str(level), total=requests, rate="")
        start, tokens = math.inf, 0

        def advance(outcome: Outcome) -> None:
            nonlocal start, tokens
            start = min(start, outcome.start)
            tokens += outcome.output_tokens
            rate = f"{tokens / (outcome.end - start):,.0f} tokens/s"
            progress.update(task, advance=1, rate=rate)

        if settings.warmup:
            warm_up = Load(target, prompts, settings.outputs, settings.seed)
            warm_up.run(Level(concurrency=settings.warmup), settings.warmup)
        load = Load(target, prompts, settings.outputs, settings.seed, advance)
        return measure(level, load.run(level, requests), settings.limits)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
        console=Console(stderr=True),
    )
