"""From the outcomes of a load to the numbers that are reported."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nemotron_bench.load import Level, Outcome
from nemotron_bench.statistics import LATENCIES, Summary, meets, summarize

LIBRARIES = (
    *("nemotron-triton", "nvidia-pytriton", "openvino", "openvino-genai"),
    *("tritonclient", "grpcio", "numpy"),
)


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LevelResult(_Frozen):
    """Of one load; latencies in seconds, throughputs per second of the whole level."""

    concurrency: int | None
    rate: float | None
    requests: int
    """That were answered."""
    errors: dict[str, int]
    """How often each reason was given."""
    seconds: float
    """From the first request's start to the last one's end."""
    input_tokens: int
    output_tokens: int
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    goodput: float | None
    """Requests per second that kept to the SLO; None without one."""
    latencies: dict[str, Summary | None]
    """By the names of `statistics.LATENCIES`; None if no request has one."""

    @property
    def label(self) -> str:
        return str(Level(self.concurrency, self.rate))


class Report(_Frozen):
    """Everything that a run has found, and on what."""

    format_version: Literal[1] = 1
    generator: str
    """What made the load."""
    target: str
    started: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    settings: dict[str, str | int | float | None]
    levels: list[LevelResult]


def measure(
    level: Level, outcomes: Sequence[Outcome], slo: Mapping[str, float] | None
) -> LevelResult:
    """`outcomes` must not be empty."""
    answered = [one for one in outcomes if one.error is None]
    seconds = max(one.end for one in outcomes) - min(one.start for one in outcomes)
    inputs = sum(one.input_tokens for one in answered)
    outputs = sum(one.output_tokens for one in answered)
    latencies = {
        name: summarize([found for one in answered if (found := one.latencies[name]) is not None])
        for name in LATENCIES
    }
    good = sum(meets(slo, one.latencies) for one in answered) / seconds if slo else None
    return LevelResult(
        concurrency=level.concurrency,
        rate=level.rate,
        requests=len(answered),
        errors=dict(Counter(one.error for one in outcomes if one.error is not None)),
        seconds=seconds,
        input_tokens=inputs,
        output_tokens=outputs,
        requests_per_second=len(answered) / seconds,
        output_tokens_per_second=outputs / seconds,
        total_tokens_per_second=(inputs + outputs) / seconds,
        goodput=good,
        latencies=latencies,
    )


def machine() -> dict[str, str | int]:
    """What this is measured on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        first = {name.strip(): value.strip() for name, _, value in reversed(lines)}
        # A hypervisor may tell a name that several generations share; family and model tell them.
        numbers = [f"{key} {first[key]}" for key in ("cpu family", "model") if key in first]
        model = ", ".join([first.get("model name", model), *numbers])
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of the libraries that are here; the server may be elsewhere and have others."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """As ISO 8601, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
