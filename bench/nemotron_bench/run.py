"""A run of `nemotron bench`, from its settings to its report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from nemotron_bench import aiperf, builtin, perf_analyzer
from nemotron_bench.draft import read_counts
from nemotron_bench.load import Level, Prompts
from nemotron_bench.machine import machine, now, versions
from nemotron_bench.results import LevelResult, Report
from nemotron_bench.settings import BenchSettings
from nemotron_bench.sweep import knee, sweep
from nemotron_bench.targets import Target, open_target
from nemotron_core.errors import NemotronError

Generator = Callable[[BenchSettings, Target, Prompts, Level], LevelResult]
"""Run one load against a target and return its result. Raises `NemotronError` if the load fails."""
GENERATORS: dict[str, Generator] = {
    "builtin": builtin.run_level,
    "perf_analyzer": perf_analyzer.run_level,
    "aiperf": aiperf.run_level,
}
"""Load generators by the file name of their program."""


def run(settings: BenchSettings) -> Report:
    """Run all loads and return the report.

    Raises `NemotronError` if the generator is unknown or the server does not answer.
    """
    started = now()
    name = Path(settings.generator).name
    if name not in GENERATORS:
        builtin_name, *tools = GENERATORS
        raise NemotronError(
            f"{settings.generator!r} is no load generator",
            where="--generator",
            remedy=f"use {builtin_name}, or a path to {' or '.join(tools)}",
        )
    with closing(open_target(settings.url, settings.model)) as target:
        # One source for all loads: a repeated prompt would be in the server's prefix cache.
        prompts = Prompts(target, settings.inputs, settings.seed)

        def measure(level: Level) -> LevelResult:
            if settings.metrics is None:
                return GENERATORS[name](settings, target, prompts, level)
            before = read_counts(settings.metrics)
            result = GENERATORS[name](settings, target, prompts, level)
            counts = read_counts(settings.metrics).since(before)
            return result.model_copy(update={"draft": counts})

        levels = sweep(measure) if settings.sweep else [*map(measure, settings.levels)]
        return Report(
            generator=name,
            target=target.name,
            started=started,
            machine=machine(),
            versions=versions(),
            settings=settings.facts(),
            levels=levels,
            knee=knee(levels) if settings.sweep else None,
        )
