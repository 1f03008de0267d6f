"""A stand-in for the program lm_eval: the same command line, settings and files of results.

It asks its tasks' questions at a chat endpoint one after the other and compares the answers with
the expected ones. The real program runs in `make test-eval`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import yaml

VERSION = 3.0


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def ask(config: dict[str, Any], question: str) -> str:
    model = config["model_args"]
    body = {"model": model["model"], "messages": [{"role": "user", "content": question}]}
    request = urllib.request.Request(
        model["base_url"], json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def load(task: str) -> dict[str, Any]:
    content = yaml.safe_load(Path(task).read_text())
    if "include" in content:
        content = load(content.pop("include")) | content
    return dict(content)


def main() -> None:
    assert sys.argv[1:3] == ["run", "--config"]
    config = yaml.safe_load(Path(sys.argv[3]).read_text())
    cache_file = Path(config["use_cache"] + "_rank0.db")
    cache = json.loads(cache_file.read_text()) if cache_file.exists() else {}
    folder = Path(config["output_path"], "stand-in")
    folder.mkdir(parents=True)
    counts, versions = {}, {}
    for path in config["tasks"]:
        task = load(path)
        (data,) = task["dataset_kwargs"]["data_files"].values()
        rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
        name = task["task"]
        samples = []
        for number, row in enumerate(rows[: config.get("limit")]):
            if row["question"] not in cache:
                print(f"asking {row['question']}", file=sys.stderr)
                cache[row["question"]] = ask(config, row["question"])
                cache_file.write_text(json.dumps(cache))
            answer = cache[row["question"]]
            for reading, value in (("strict", 0.0), ("loose", float(answer == row["answer"]))):
                samples.append(
                    {
                        "doc_id": number,
                        "doc_hash": digest(row),
                        "prompt_hash": digest(row["question"]),
                        "filter": reading,
                        "exact_match": value,
                        "letters": [letter == "a" for letter in answer],
                    }
                )
        lines = [json.dumps(sample) + "\n" for sample in samples]
        (folder / f"samples_{name}_2026-01-01.jsonl").write_text("".join(lines))
        counts[name] = {"original": len(rows), "effective": len(samples) // 2}
        versions[name] = VERSION
    summary = {"versions": versions, "n-samples": counts}
    (folder / "results_2026-01-01.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main()
