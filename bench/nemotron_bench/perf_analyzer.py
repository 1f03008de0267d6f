"""NVIDIA's perf_analyzer as the load generator, its measurements converted to the bench's terms."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from nemotron_bench.load import Level, Outcome, Prompts, count_tokens
from nemotron_bench.results import LevelResult, measure
from nemotron_bench.settings import BenchSettings
from nemotron_bench.targets import Target, TritonTarget
from nemotron_bench.tool import NANOSECONDS, run_tool, warm_up
from nemotron_core.errors import NemotronError


def run_level(
    settings: BenchSettings, target: Target, source: Prompts, level: Level
) -> LevelResult:
    """Run one load with perf_analyzer. See `run.Generator`."""
    if not isinstance(target, TritonTarget):
        raise NemotronError(
            "perf_analyzer needs Triton", where="--url", remedy="use grpc://host:port"
        )
    if settings.outputs.low != settings.outputs.high:
        raise NemotronError(
            "perf_analyzer does not report lengths of answers",
            where="--output-tokens",
            remedy="use one number",
        )
    tokens = settings.outputs.low
    warm_up(settings, target, source)
    requests = settings.requests_of(level)
    prompts = [source.next() for _ in range(requests)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = {"max_tokens": [tokens], "end_id": [-1], "stream": [True]}
        data = [{"text_input": [prompt], **inputs} for prompt in prompts]
        (folder / "input.json").write_text(json.dumps({"data": data}))
        command = [
            settings.generator,
            *("-m", target.model, "-i", "grpc", "-u", target.host),
            *("--async", "--streaming", f"--input-data={folder / 'input.json'}"),
            f"--request-count={requests}",
            f"--profile-export-file={folder / 'profile.json'}",
            *_load_options(level),
        ]
        run_tool("perf_analyzer", command, target, _environment(settings.generator))
        # It writes the bytes of tensors into its JSON as they are.
        text = (folder / "profile.json").read_text("utf-8", errors="replace")
    prompt_tokens = sum(count_tokens(target, prompt, 1) for prompt in prompts) // len(prompts)
    outcomes = read_outcomes(json.loads(text, strict=False), prompt_tokens, tokens)
    return measure(level, outcomes, settings.limits)


def _load_options(level: Level) -> list[str]:
    if level.concurrency:
        return [f"--concurrency-range={level.concurrency}"]
    return [f"--request-rate-range={level.rate:g}", "--request-distribution=poisson"]


def read_outcomes(export: Any, input_tokens: int, output_tokens: int) -> list[Outcome]:
    """Return the outcomes of requests from what `--profile-export-file` wrote.

    The token counts are those of each request; the export has none.
    """
    (experiment,) = export["experiments"]
    return [
        Outcome(
            start=request["timestamp"] / NANOSECONDS,
            first=request["response_timestamps"][0] / NANOSECONDS,
            end=request["response_timestamps"][-1] / NANOSECONDS,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
        for request in experiment["requests"]
    ]


def _environment(program: str) -> dict[str, str]:
    """Return an environment in which the program finds the CUDA runtime of its own installation.

    perf_analyzer is linked with that library and does not use it here.
    """
    home = Path(program).absolute().parents[1]
    libraries = home.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib")
    paths = [*map(str, libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(paths)}
