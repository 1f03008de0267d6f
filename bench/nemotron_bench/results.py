"""The numbers of a report, computed from the outcomes of a load's requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nemotron_bench.draft import DraftCounts
from nemotron_bench.load import Level, Outcome
from nemotron_bench.statistics import LATENCIES, Summary, meets, summarize, throughput_interval


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LevelResult(_Frozen):
    """Result of one load: latencies in seconds, throughputs per second of the whole load."""

    concurrency: int | None
    rate: float | None
    requests: int
    """Number of requests that were answered."""
    errors: dict[str, int]
    """Number of failed requests by error message."""
    seconds: float
    """Time from the first request's start to the last request's end."""
    input_tokens: int
    output_tokens: int
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    goodput: float | None
    """Requests per second that met the SLO, or `None` without an SLO."""
    throughput_interval: tuple[float, float] | None = None
    """95 % confidence interval of the output tokens per second, from parts of the load's time."""
    in_flight: float | None = None
    """Mean number of requests in flight: that of the load, less what its end leaves out."""
    latencies: dict[str, Summary | None]
    """Summary by the names of `statistics.LATENCIES`, or `None` if no request has that latency."""
    draft: DraftCounts | None = None
    """What a draft did during the load and its warm-up; `None` if there was none, or is unknown."""

    @property
    def label(self) -> str:
        return str(Level(self.concurrency, self.rate))


class Report(_Frozen):
    """Results of one run of `nemotron bench`, with its target, machine and settings."""

    format_version: Literal[1] = 1
    generator: str
    """Name of the load generator."""
    target: str
    started: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    settings: dict[str, str | int | float | None]
    levels: list[LevelResult]
    knee: int | None = None
    """The load at which a sweep found that the server saturates, in requests in flight."""

    def facts(self) -> dict[str, str | int | float]:
        """Return what was measured and on what, for a person, without settings that are `None`."""
        machine = dict(self.machine)
        if "memory" in machine:
            machine["memory"] = f"{int(machine['memory']) / 2**30:.1f} GiB"
        drafts = {
            f"draft, {level.label}": str(level.draft)
            for level in self.levels
            if level.draft is not None
        }
        facts = {
            "target": self.target,
            "generator": self.generator,
            "started": self.started,
            **drafts,
            **self.settings,
            **machine,
            **self.versions,
        }
        return {name: value for name, value in facts.items() if value is not None}


def measure(
    level: Level, outcomes: Sequence[Outcome], slo: Mapping[str, float] | None
) -> LevelResult:
    """Return the result of one load. `outcomes` must not be empty."""
    answered = [outcome for outcome in outcomes if outcome.error is None]
    seconds = max(outcome.end for outcome in outcomes) - min(outcome.start for outcome in outcomes)
    inputs = sum(outcome.input_tokens for outcome in answered)
    outputs = sum(outcome.output_tokens for outcome in answered)
    latencies = {
        name: summarize(
            [value for outcome in answered if (value := outcome.latencies[name]) is not None]
        )
        for name in LATENCIES
    }
    good = sum(meets(slo, outcome.latencies) for outcome in answered) / seconds if slo else None
    return LevelResult(
        concurrency=level.concurrency,
        rate=level.rate,
        requests=len(answered),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None)),
        seconds=seconds,
        input_tokens=inputs,
        output_tokens=outputs,
        requests_per_second=len(answered) / seconds,
        output_tokens_per_second=outputs / seconds,
        total_tokens_per_second=(inputs + outputs) / seconds,
        goodput=good,
        throughput_interval=throughput_interval(
            [(outcome.start, outcome.end, outcome.output_tokens) for outcome in answered]
        ),
        in_flight=sum(outcome.end - outcome.start for outcome in outcomes) / seconds,
        latencies=latencies,
    )
