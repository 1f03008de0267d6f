"""NVIDIA's perf_analyzer as the load generator; what it measured, in the same terms."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_bench.load import Level, Outcome, Prompts, count_tokens
from nemotron_bench.results import LevelResult, measure
from nemotron_bench.targets import Target, TritonTarget
from nemotron_core.errors import NemotronError

if TYPE_CHECKING:
    from nemotron_bench.run import BenchSettings

NANOSECONDS = 1e9
"""In a second; its clock counts them."""


def run_level(
    settings: BenchSettings, target: Target, source: Prompts, level: Level
) -> LevelResult:
    """NemotronError with its own words if it fails."""
    if not isinstance(target, TritonTarget):
        raise NemotronError(
            "perf_analyzer asks Triton", where="--url", remedy="use grpc://host:port"
        )
    if settings.outputs.low != settings.outputs.high:
        raise NemotronError("perf_analyzer does not say how long an answer was: fix its length")
    tokens = settings.outputs.low
    for _ in range(settings.warmup):
        count_tokens(target, source.next(), tokens)
    prompts = [source.next() for _ in range(settings.requests)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = {"max_tokens": [tokens], "min_tokens": [tokens], "stream": [True]}
        data = [{"text_input": [prompt], **asked} for prompt in prompts]
        (folder / "input.json").write_text(json.dumps({"data": data}))
        command = [
            settings.generator,
            *("-m", target.model, "-i", "grpc", "-u", target.host),
            *("--async", "--streaming", f"--input-data={folder / 'input.json'}"),
            f"--request-count={settings.requests}",
            f"--profile-export-file={folder / 'profile.json'}",
            *_load(level),
        ]
        done = subprocess.run(
            command, env=_environment(command[0]), capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = " ".join((done.stdout + done.stderr).split())[:500]
            raise NemotronError(f"perf_analyzer failed: {said}", where=target.name)
        # It writes the bytes of tensors into its JSON as they are.
        text = (folder / "profile.json").read_text("utf-8", errors="replace")
    inputs = sum(count_tokens(target, prompt, 1) for prompt in prompts) // len(prompts)
    outcomes = read_outcomes(json.loads(text, strict=False), inputs, tokens)
    return measure(level, outcomes, settings.slo)


def _load(level: Level) -> list[str]:
    if level.concurrency:
        return [f"--concurrency-range={level.concurrency}"]
    return [f"--request-rate-range={level.rate:g}", "--request-distribution=poisson"]


def read_outcomes(export: Any, input_tokens: int, output_tokens: int) -> list[Outcome]:
    """From what `--profile-export-file` wrote; the counts are those of each request."""
    (experiment,) = export["experiments"]
    outcomes = []
    for one in experiment["requests"]:
        times = one["response_timestamps"]
        outcomes.append(
            Outcome(
                start=one["timestamp"] / NANOSECONDS,
                first=times[0] / NANOSECONDS,
                end=times[-1] / NANOSECONDS,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
            )
        )
    return outcomes


def _environment(program: str) -> dict[str, str]:
    """With the CUDA runtime of its own environment, which it is linked with and does not use."""
    home = Path(program).absolute().parents[1]
    found = home.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib")
    places = [*map(str, found), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(places)}
