"""NVIDIA's AIPerf as the load generator; what it measured, in the same terms."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_bench.load import Level, Outcome, Prompts, count_tokens
from nemotron_bench.results import LevelResult, measure
from nemotron_bench.targets import OpenAITarget, Target
from nemotron_core.errors import NemotronError

if TYPE_CHECKING:
    from nemotron_bench.run import BenchSettings

RECORDS = "profile_export.jsonl"
NANOSECONDS = 1e9
"""In a second."""
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
"""AIPerf does not begin without one; the counts are the server's all the same."""


def run_level(
    settings: BenchSettings, target: Target, source: Prompts, level: Level
) -> LevelResult:
    """NemotronError with its own words if it fails."""
    if not isinstance(target, OpenAITarget):
        raise NemotronError(
            "AIPerf asks an OpenAI API", where="--url", remedy="use http://host:port"
        )
    if settings.outputs.low != settings.outputs.high:
        raise NemotronError("AIPerf sends one length to all: fix --output-tokens")
    tokens = settings.outputs.low
    for _ in range(settings.warmup):
        count_tokens(target, source.next(), tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = [json.dumps({"text": source.next()}) for _ in range(settings.requests)]
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
            *("--extra-inputs", f"max_tokens:{tokens}", "--extra-inputs", f"min_tokens:{tokens}"),
            *("--request-count", str(settings.requests), "--artifact-dir", str(folder / "out")),
            *("--random-seed", str(settings.seed), "--ui-type", "none"),
            *("--no-gpu-telemetry", "--no-server-metrics"),
            *_load(level),
        ]
        if target.api_key:
            command += ["--api-key", target.api_key]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        records = folder / "out" / RECORDS
        if done.returncode or not records.is_file():
            said = " ".join((done.stdout + done.stderr).split())[-500:]
            raise NemotronError(f"AIPerf failed: {said}", where=target.name)
        with records.open(encoding="utf-8") as lines:
            outcomes = read_outcomes(json.loads(line) for line in lines)
    return measure(level, outcomes, settings.slo)


def _load(level: Level) -> list[str]:
    if level.concurrency:
        return ["--concurrency", str(level.concurrency)]
    return ["--request-rate", f"{level.rate:g}", "--arrival-pattern", "poisson"]


def read_outcomes(records: Iterable[Any]) -> list[Outcome]:
    """From what AIPerf exports of each request."""
    outcomes = []
    for one in records:
        start = one["metadata"]["request_start_ns"] / NANOSECONDS
        if one.get("error"):
            end = one["metadata"]["request_end_ns"] / NANOSECONDS
            outcome = Outcome(
                start=start,
                first=None,
                end=end,
                input_tokens=0,
                output_tokens=0,
                error=str(one["error"].get("message") or one["error"]),
            )
        else:
            metrics = {name: metric["value"] for name, metric in one["metrics"].items()}
            outcome = Outcome(
                start=start,
                first=start + metrics["time_to_first_token"] / 1e3,
                end=start + metrics["request_latency"] / 1e3,
                input_tokens=metrics["usage_prompt_tokens"],
                output_tokens=metrics["usage_completion_tokens"],
            )
        outcomes.append(outcome)
    return outcomes
