"""The options of `nemotron bench` as one typed object."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import typer

from nemotron_bench.load import Level
from nemotron_bench.statistics import Lengths, parse_slo
from nemotron_core.errors import NemotronError

USUAL_REQUESTS = 64
REQUESTS_IN_A_ROW = 4
"""Number of requests, of a load that has `USUAL_REQUESTS` or more, for each one in flight."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Options of `nemotron bench`. Raises `NemotronError`, which names the option, for a bad value.

    The fields are the texts of the command line; the properties are their values.
    """

    url: Annotated[
        str,
        typer.Option(help="Server: grpc://host:port for Triton, http://host:port for a gateway."),
    ] = "grpc://127.0.0.1:8001"
    model: Annotated[
        str | None, typer.Option(help="Model to ask, instead of the server's usual model.")
    ] = None
    concurrency: Annotated[
        str | None, typer.Option(help="Requests in flight; several loads: 1,8,32.")
    ] = None
    rate: Annotated[
        str | None, typer.Option(help="New requests per second at random times; several: 1,2,4.")
    ] = None
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep", help="Double the requests in flight until the throughput no longer grows."
        ),
    ] = False
    requests: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of requests of each load: by default 64, or 4 for each in flight."
        ),
    ] = None
    warmup: Annotated[int, typer.Option(min=0, help="Uncounted requests before each load.")] = 4
    input_tokens: Annotated[str, typer.Option(help="Tokens of a prompt: N or LOW-HIGH.")] = "128"
    output_tokens: Annotated[str, typer.Option(help="Tokens of an answer: N or LOW-HIGH.")] = "64"
    slo: Annotated[
        str | None,
        typer.Option(
            "--slo", "--goodput", help="Limits for goodput: ttft=SECONDS,itl=SECONDS,e2e=SECONDS."
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of prompts, lengths and arrival times.")] = 1
    generator: Annotated[
        str, typer.Option(help="Load generator: builtin, or a path to perf_analyzer or aiperf.")
    ] = "builtin"
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Triton's page of metrics, http://HOST:8002/metrics: with it, the report says how"
            " many tokens per step a draft gives."
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder to write JSON, Markdown and HTML reports to."),
    ] = None
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.json B.json", help="Measure nothing; compare two reports."),
    ] = None

    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False

    def __post_init__(self) -> None:
        _ = self.inputs, self.outputs, self.limits
        for level in self.levels:
            self.requests_of(level)

    def requests_of(self, level: Level) -> int:
        """Return the number of requests of a load.

        Raises `NemotronError` if they are fewer than the load has in flight: it would not be made.
        """
        in_flight = level.concurrency or 1
        if self.requests is None:
            return max(USUAL_REQUESTS, REQUESTS_IN_A_ROW * in_flight)
        if self.requests < in_flight:
            raise NemotronError(
                f"{self.requests} requests cannot be {in_flight} at once",
                where="--requests",
                remedy=f"give at least {in_flight}, or leave it out",
            )
        return self.requests

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Loads to run, in order. With `--sweep`, the first of them."""
        if self.sweep:
            if self.rate is not None or self.concurrency is not None:
                raise NemotronError("--sweep chooses the loads", remedy="leave out the others")
            return (Level(concurrency=1),)
        if self.rate is not None and self.concurrency is not None:
            raise NemotronError("give --concurrency or --rate, not both")
        if self.rate is not None:
            return tuple(Level(rate=rate) for rate in _numbers(self.rate, "--rate"))
        counts = _numbers(self.concurrency or "1", "--concurrency")
        if any(count != int(count) for count in counts):
            raise NemotronError(
                f"{self.concurrency!r} is no number of requests", where="--concurrency"
            )
        return tuple(Level(concurrency=int(count)) for count in counts)

    @cached_property
    def inputs(self) -> Lengths:
        """Lengths of prompts in tokens."""
        return Lengths.parse(self.input_tokens, "--input-tokens")

    @cached_property
    def outputs(self) -> Lengths:
        """Lengths of answers in tokens."""
        return Lengths.parse(self.output_tokens, "--output-tokens")

    @cached_property
    def limits(self) -> dict[str, float] | None:
        """Upper limits of the SLO in seconds by latency, or `None` without an SLO."""
        return parse_slo(self.slo) if self.slo else None

    def facts(self) -> dict[str, str | int | float | None]:
        """Return the settings as the report lists them."""
        slo = ",".join(f"{name}={limit:g}" for name, limit in (self.limits or {}).items())
        return {
            "requests per load": self.requests or f"{USUAL_REQUESTS}, {REQUESTS_IN_A_ROW} in a row",
            "warm-up requests": self.warmup,
            "input tokens": str(self.inputs),
            "output tokens": str(self.outputs),
            "slo": slo or None,
            "seed": self.seed,
        }


def _numbers(text: str, where: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise NemotronError(f"{text!r} is no list of numbers", where=where) from error
    if not all(0 < number < math.inf for number in numbers):
        raise NemotronError(f"{text!r} has a number that is not positive", where=where)
    return numbers
