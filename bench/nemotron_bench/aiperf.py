"""NVIDIA's AIPerf as the load generator, its measurements converted to the bench's terms."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemotron_bench.load import Level, Outcome, Prompts
from nemotron_bench.results import LevelResult, measure
from nemotron_bench.settings import BenchSettings
from nemotron_bench.targets import OpenAITarget, Target
from nemotron_bench.tool import NANOSECONDS, run_tool, warm_up
from nemotron_core.errors import NemotronError

RECORDS = "profile_export.jsonl"
TOKENIZER = {
    "tokenizer.json": {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
    },
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "[UNK]",
    },
}
"""A placeholder: AIPerf does not start without a tokenizer. The token counts are the server's."""


def run_level(
    settings: BenchSettings, target: Target, source: Prompts, level: Level
) -> LevelResult:
    """Run one load with AIPerf. See `run.Generator`."""
    if not isinstance(target, OpenAITarget):
        raise NemotronError(
            "AIPerf needs an OpenAI API", where="--url", remedy="use http://host:port"
        )
    if settings.outputs.low != settings.outputs.high:
        raise NemotronError(
            "AIPerf gives all answers one length", where="--output-tokens", remedy="use one number"
        )
    tokens, requests = settings.outputs.low, settings.requests_of(level)
    warm_up(settings, target, source)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = [json.dumps({"text": source.next()}) for _ in range(requests)]
        (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
        (folder / "tokenizer").mkdir()
        for file, content in TOKENIZER.items():
            (folder / "tokenizer" / file).write_text(json.dumps(content))
        command = [
            *(settings.generator, "profile", "--model", target.model),
            *("--url", f"http://{target.host}", "--endpoint-type", "completions", "--streaming"),
            *("--input-file", str(folder / "prompts.jsonl")),
            *("--custom-dataset-type", "single_turn", "--use-server-token-count"),
            *("--tokenizer", str(folder / "tokenizer")),
            *("--extra-inputs", f"max_tokens:{tokens}", "--extra-inputs", "ignore_eos:true"),
            *("--request-count", str(requests), "--artifact-dir", str(folder / "out")),
            *("--random-seed", str(settings.seed), "--ui-type", "none"),
            *("--no-gpu-telemetry", "--no-server-metrics"),
            *_load_options(level),
        ]
        if target.api_key:
            command += ["--api-key", target.api_key]
        output = run_tool("AIPerf", command, target)
        records = folder / "out" / RECORDS
        if not records.is_file():
            raise NemotronError(f"AIPerf failed: {output}", where=target.name)
        with records.open(encoding="utf-8") as lines:
            outcomes = read_outcomes(json.loads(line) for line in lines)
    return measure(level, outcomes, settings.limits)


def _load_options(level: Level) -> list[str]:
    if level.concurrency:
        return ["--concurrency", str(level.concurrency)]
    return ["--request-rate", f"{level.rate:g}", "--arrival-pattern", "poisson"]


def read_outcomes(records: Iterable[Any]) -> list[Outcome]:
    """Return the outcomes of requests from AIPerf's records, one per request."""
    outcomes = []
    for record in records:
        start = record["metadata"]["request_start_ns"] / NANOSECONDS
        if error := record.get("error"):
            outcome = Outcome(
                start=start,
                first=None,
                end=record["metadata"]["request_end_ns"] / NANOSECONDS,
                input_tokens=0,
                output_tokens=0,
                error=str(error.get("message") or error),
            )
        else:
            metrics = {name: metric["value"] for name, metric in record["metrics"].items()}
            outcome = Outcome(
                start=start,
                first=start + metrics["time_to_first_token"] / 1e3,
                end=start + metrics["request_latency"] / 1e3,
                input_tokens=metrics["usage_prompt_tokens"],
                output_tokens=metrics["usage_completion_tokens"],
            )
        outcomes.append(outcome)
    return outcomes
