"""From seed rows to preference pairs on one machine: a tiny model generates, a tiny one scores."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
FREE = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health")]
WEIGHTS = {
    "helpfulness": 0.3,
    "correctness": 0.74,
    "coherence": 0.46,
    "complexity": 0.47,
    "verbosity": -0.33,
}
TOPICS = ("the sky", "tea", "Mount Fuji", "the capital of France")
SAMPLES = 6


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def test_both_models_are_served_and_asked_by_one_command(
    engine_bf16: Path, engine_tiny_reward: Path, tmp_path: Path
) -> None:
    generator, scorer = free_ports(2)
    rows = "".join(json.dumps({"topic": topic}) + "\n" for topic in TOPICS)
    (tmp_path / "topics.jsonl").write_text(rows)
    recipe = {
        "models": {
            "generator": {"url": f"http://127.0.0.1:{generator}"},
            "reward": {
                "url": f"http://127.0.0.1:{scorer}",
                "model": "nvidia/nemotron-4-340b-reward",
                "seed": False,
            },
        },
        "steps": {
            "answers": {
                "rows": "topics.jsonl",
                "prompt": "Tell me about {{ topic }}.",
                "samples": SAMPLES,
                "sampling": {"temperature": 1.5, "max_tokens": 60},
                "accept": ["any"],
            },
            "scored": {"rows": "answers", "score": {"reward": "reward"}},
            "pairs": {"rows": "scored", "pairs": {"margin": 0.05}},
        },
        "outputs": {
            "scores.jsonl": {"rows": "scored", "format": "columns"},
            "preferences.jsonl": {"rows": "pairs", "format": "columns"},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = subprocess.run(
        [
            *(NEMOTRON, "serve", engine_bf16, f"--gateway-port={generator}", *FREE, "--"),
            *(NEMOTRON, "serve", engine_tiny_reward, f"--gateway-port={scorer}", *FREE, "--"),
            *(NEMOTRON, "synthesize", "recipe.yaml", "data"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept = _rows(tmp_path / "data" / "scores.jsonl")
    assert len(kept) > len(TOPICS)
    for row in kept:
        weighted = sum(weight * row["scores"][name] for name, weight in WEIGHTS.items())
        assert abs(row["reward"] - weighted) < 1e-6
    pairs = _rows(tmp_path / "data" / "preferences.jsonl")
    assert pairs
    assert all(pair["chosen_reward"] > pair["rejected_reward"] for pair in pairs)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
