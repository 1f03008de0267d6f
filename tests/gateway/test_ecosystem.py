"""Programs that people use with an OpenAI API, unchanged and offline, on the real stack."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_convert.convert import Format, Options, convert
from nemotron_convert.shards import Parallel
from tests.gateway.process import MODEL, Running
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.nemo_file import NEMO
from tests.tools import python_tool

ROOT = Path(__file__).parents[2]
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_ENDPOINT": "http://127.0.0.1:9",  # where nobody listens
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def run(program: Path, *arguments: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(program), *arguments],
        cwd=folder,
        env=os.environ | OFFLINE | {"HOME": str(folder)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_aiperf(gateway: Running, tmp_path: Path) -> None:
    tokenizer = tmp_path / "hf"
    convert(NEMO, tokenizer, Options(Parallel(1, 1), Format.HF))
    before = gateway.metric("nemotron_gateway_generated_tokens_total")
    run(
        python_tool("ecosystem", "aiperf"),
        *("profile", "--model", MODEL, "--url", gateway.url, "--endpoint-type", "chat"),
        *("--streaming", "--tokenizer", str(tokenizer), "--use-server-token-count"),
        *("--concurrency", "4", "--request-count", "12", "--random-seed", "1", "--ui", "none"),
        *("--synthetic-input-tokens-mean", "50", "--output-tokens-mean", "20"),
        *("--extra-inputs", "min_tokens:20", "--output-artifact-dir", str(tmp_path / "results")),
        folder=tmp_path,
    )
    profile = json.loads((tmp_path / "results" / "profile_export_aiperf.json").read_text())
    assert profile["request_count"]["avg"] == 12
    assert profile["output_sequence_length"]["avg"] == 20
    assert profile["time_to_first_token"]["avg"] > 0
    assert profile["inter_token_latency"]["avg"] > 0
    assert not profile.get("error_request_count", {}).get("avg")
    assert gateway.metric("nemotron_gateway_generated_tokens_total") >= before + 12 * 20


@pytest.mark.parametrize("kind", ["local-chat-completions", "local-completions"])
def test_lm_eval(kind: str, gateway: Running, answers: list[ExactAnswer], tmp_path: Path) -> None:
    """The score is 1 for questions whose exact answers are known."""
    questions = [exact.question for exact in answers if len(exact.question.messages) == 1][:6]
    rows = tmp_path / "questions.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"question": question.messages[0].content, "answer": question.answer}) + "\n"
            for question in questions
        )
    )
    chat = kind == "local-chat-completions"
    template = "<extra_id_0>System\n\n<extra_id_1>User\n{{question}}\n<extra_id_1>Assistant\n"
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}" if chat else template,
        "doc_to_target": "{{answer}}" if chat else "{{answer}}\n",
        "generation_kwargs": {"until": [], "max_gen_toks": 256, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "higher_is_better": True}],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(task))
    path = "/v1/chat/completions" if chat else "/v1/completions"
    settings = {
        "model": MODEL,
        "base_url": gateway.url + path,
        "num_concurrent": 2,
        "tokenizer_backend": None,
        "tokenized_requests": False,
    }
    run(
        python_tool("ecosystem", "lm_eval"),
        *("--model", kind, "--tasks", "tiny", "--include_path", str(tmp_path)),
        *("--model_args", ",".join(f"{name}={value}" for name, value in settings.items())),
        *("--output_path", str(tmp_path / "results"), *(["--apply_chat_template"] if chat else [])),
        folder=tmp_path,
    )
    (results,) = (tmp_path / "results").rglob("results*.json")
    (score,) = (
        value
        for name, value in json.loads(results.read_text())["results"]["tiny"].items()
        if name.startswith("exact_match,")
    )
    assert score == 1


def test_garak(gateway: Running, tmp_path: Path) -> None:
    before = len(gateway.lines())
    settings: dict[str, Any] = {
        "system": {"lite": True, "parallel_attempts": 4},
        "run": {"generations": 1, "soft_probe_prompt_cap": 4},
        "plugins": {
            "target_type": "openai.OpenAICompatible",
            "target_name": MODEL,
            "generators": {"openai": {"OpenAICompatible": {"uri": f"{gateway.url}/v1/"}}},
        },
        "reporting": {"report_prefix": "tiny"},
    }
    (tmp_path / "garak.yaml").write_text(yaml.safe_dump(settings))
    run(
        python_tool("garak", "python"),
        *("-m", "garak", "--config", "garak.yaml"),
        *("--probes", "encoding.InjectBase16,encoding.InjectMorse"),
        folder=tmp_path,
        OPENAICOMPATIBLE_API_KEY="none",
        HF_HUB_OFFLINE="1",
        **{f"XDG_{kind}_HOME": str(tmp_path) for kind in ("DATA", "CACHE", "CONFIG")},
    )
    (report,) = tmp_path.rglob("tiny.report.jsonl")
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    attempts = [line for line in lines if line["entry_type"] == "attempt" and line["status"] == 2]
    assert {line["probe_classname"] for line in attempts} == {
        "encoding.InjectBase16",
        "encoding.InjectMorse",
    }
    # The tiny model may have nothing to say to Morse; that is an answer all the same.
    outputs = [output for line in attempts for output in line["outputs"]]
    assert len(outputs) == 8
    assert all(output is not None and output["text"] is not None for output in outputs)
    assert any(output["text"] for output in outputs)
    requests = [line for line in gateway.lines()[before:] if line["path"] == "/v1/chat/completions"]
    assert [line["status"] for line in requests] == [200] * 8
    evals = [line for line in lines if line["entry_type"] == "eval"]
    assert len(evals) == 4
    assert "completion" in {line["entry_type"] for line in lines}
