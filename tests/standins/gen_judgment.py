"""A stand-in for `gen_judgment` of NVIDIA's MT-Bench evaluator: the same arguments and files.

It asks the judge about one turn after the other. The real one runs in `make test-eval`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import urllib.request
from pathlib import Path
from typing import Any


def ask(url: str, model: str, prompt: str) -> str:
    # As the real one: a module that our program has put there.
    adapter = importlib.import_module("fastchat.model.model_adapter")
    messages = [*adapter.get_conversation_template(model), {"role": "user", "content": prompt}]
    body = json.dumps({"model": model, "messages": messages}).encode()
    headers = {"content-type": "application/json",
               "authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}  # fmt: skip
    request = urllib.request.Request(f"{url}/chat/completions", body, headers)
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("responses_dir", "output_path"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("judge-model", "judge_url", "reference-model"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("judge_max_tokens", "judge_max_retries", "judge_request_timeout", "parallel"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--first-n", type=int)
    options = parser.parse_args()
    assert options.reference_model == "gpt-4-0125-preview"
    data = Path(__file__).parents[1] / "data" / "mt_bench"
    (answers_file,) = options.responses_dir.glob("*.jsonl")
    answers = {entry["question_id"]: entry for entry in lines(answers_file)}
    output = options.output_path / "judgements"
    output.mkdir(exist_ok=True)
    path = output / f"{options.judge_model.replace('/', '--')}_single.jsonl"
    known = lines(path) if path.exists() else []
    rated = {(entry["question_id"], entry["turn"]) for entry in known if entry["score"] != -1}
    for question in lines(data / "question.jsonl")[: options.first_n]:
        number = question["question_id"]
        for turn in (1, 2):
            if (number, turn) in rated:
                continue
            answer = answers[number]["choices"][0]["turns"][turn - 1]
            judgment = ask(options.judge_url, options.judge_model, f"{turn}: {answer}")
            match = re.search(r"\[\[(\d+\.?\d*)\]\]", judgment)
            entry = {
                "question_id": number,
                "turn": turn,
                "model": answers_file.stem,
                "judgment": judgment,
                "score": float(match[1]) if match else -1,
            }
            with path.open("a") as file:
                file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
