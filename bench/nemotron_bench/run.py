"""A run of `nemotron bench`, from its options to its report."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from nemotron_bench import aiperf, perf_analyzer
from nemotron_bench.load import Level, Load, Outcome, Prompts
from nemotron_bench.results import LevelResult, Report, machine, measure, now, versions
from nemotron_bench.statistics import Lengths, parse_slo
from nemotron_bench.targets import Target, open_target
from nemotron_core.errors import NemotronError

BUILTIN = "builtin"
TOOLS = {"perf_analyzer": perf_analyzer.run_level, "aiperf": aiperf.run_level}


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    url: str
    model: str | None
    levels: tuple[Level, ...]
    requests: int
    warmup: int
    inputs: Lengths
    outputs: Lengths
    slo: dict[str, float] | None
    seed: int
    generator: str

    @classmethod
    def parse(
        cls,
        *,
        url: str,
        model: str | None,
        concurrency: str | None,
        rate: str | None,
        requests: int,
        warmup: int,
        input_tokens: str,
        output_tokens: str,
        slo: str | None,
        seed: int,
        generator: str,
    ) -> BenchSettings:
        """From the command line; NemotronError names the option that is wrong."""
        if rate is not None and concurrency is not None:
            raise NemotronError("give --concurrency or --rate, not both")
        if rate is not None:
            levels = [Level(rate=value) for value in _numbers(rate, "--rate")]
        else:
            counts = _numbers(concurrency or "1", "--concurrency")
            if any(count != int(count) for count in counts):
                raise NemotronError(
                    f"{concurrency!r} is no number of requests", where="--concurrency"
                )
            levels = [Level(concurrency=int(count)) for count in counts]
        if generator != BUILTIN and Path(generator).name not in TOOLS:
            raise NemotronError(
                f"{generator!r} is no load generator",
                where="--generator",
                remedy=f"use {BUILTIN}, or a path to {' or '.join(TOOLS)}",
            )
        return cls(
            url=url,
            model=model,
            levels=tuple(levels),
            requests=requests,
            warmup=warmup,
            inputs=Lengths.parse(input_tokens, "--input-tokens"),
            outputs=Lengths.parse(output_tokens, "--output-tokens"),
            slo=parse_slo(slo) if slo else None,
            seed=seed,
            generator=generator,
        )

    def told(self) -> dict[str, str | int | float | None]:
        """For the report."""
        slo = ",".join(f"{name}={limit:g}" for name, limit in (self.slo or {}).items())
        return {
            "requests per load": self.requests,
            "warm-up requests": self.warmup,
            "input tokens": str(self.inputs),
            "output tokens": str(self.outputs),
            "slo": slo or None,
            "seed": self.seed,
        }


def run(settings: BenchSettings) -> Report:
    """NemotronError if the server does not answer, KeyboardInterrupt as it is."""
    started = now()
    with closing(open_target(settings.url, settings.model)) as target:
        # One source for all levels: a prompt that comes again is in the server's cache of prefixes.
        prompts = Prompts(target, settings.inputs, settings.seed)
        if settings.generator == BUILTIN:
            levels = _builtin(settings, target, prompts)
        else:
            run_level = TOOLS[Path(settings.generator).name]
            levels = [run_level(settings, target, prompts, level) for level in settings.levels]
        return Report(
            generator=Path(settings.generator).name,
            target=target.name,
            started=started,
            machine=machine(),
            versions=versions(),
            settings=settings.told(),
            levels=levels,
        )


def _builtin(settings: BenchSettings, target: Target, prompts: Prompts) -> list[LevelResult]:
    results = []
    with _progress() as progress:
        for level in settings.levels:
            task = progress.add_task(str(level), total=settings.requests, rate="")
            seen = _Seen()

            def advance(outcome: Outcome, task: TaskID = task, seen: _Seen = seen) -> None:
                rate = f"{seen.rate(outcome):,.0f} tokens/s"
                progress.update(task, advance=1, rate=rate)

            load = Load(target, prompts, settings.outputs, settings.seed, advance)
            if settings.warmup:
                quiet = Load(target, prompts, settings.outputs, settings.seed, lambda _one: None)
                quiet.run(Level(concurrency=settings.warmup), settings.warmup)
            results.append(measure(level, load.run(level, settings.requests), settings.slo))
    return results


@dataclass
class _Seen:
    """Of the requests so far."""

    start: float = math.inf
    tokens: int = 0

    def rate(self, outcome: Outcome) -> float:
        """Tokens per second, with this one."""
        self.start = min(self.start, outcome.start)
        self.tokens += outcome.output_tokens
        return self.tokens / (outcome.end - self.start)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
        console=Console(stderr=True),
    )


def _numbers(text: str, where: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise NemotronError(f"{text!r} is no list of numbers", where=where) from error
    if not all(0 < number < math.inf for number in numbers):
        raise NemotronError(f"{text!r} has a number that is not positive", where=where)
    return numbers
