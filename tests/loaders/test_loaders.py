"""The Hugging Face folder through the programs that load it, each in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_core.text.prompt import CHAT_TEMPLATE
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.nemo_file import NEMO as TRAINED
from tests.vllm.wide_heads import widen_heads

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / ".tools"
PYTHONS = {
    "4": TOOLS / "transformers4" / "bin" / "python",
    "5": Path(sys.executable),
}
"""The Python with each major version of transformers."""
QUESTIONS = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "trained"
    convert(TRAINED, folder, Options(Parallel(1, 1), Format.HF))
    return folder


def run(python: Path, worker: str, folder: Path, answers: list[ExactAnswer]) -> Any:
    """Return what a worker prints in the last line when it gets the questions."""
    questions = [
        [vars(message) for message in answer.question.messages] for answer in answers[:QUESTIONS]
    ]
    done = subprocess.run(
        [python, HERE / worker, folder],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def right(answers: list[ExactAnswer]) -> list[str]:
    return [answer.question.answer.strip() for answer in answers[:QUESTIONS]]


@pytest.mark.parametrize("version", PYTHONS)
def test_transformers(version: str, trained: Path, answers: list[ExactAnswer]) -> None:
    report = run(PYTHONS[version], "transformers_worker.py", trained, answers)
    assert report["version"].split(".")[0] == version
    assert report["answers"] == right(answers)
    assert report["inputs"] == ["attention_mask", "input_ids"]
    assert 2 not in report["ids"]  # no BOS
    assert report["special"] == {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>"}
    assert not report["is_special"]
    assert report["ends"] == [5, 3]


def test_vllm(trained: Path, answers: list[ExactAnswer], tmp_path: Path) -> None:
    """On a copy with wider heads, because vLLM has no CPU kernel for those of the tiny model."""
    widen_heads(trained, tmp_path / "wide")
    python = TOOLS / "vllm" / "bin" / "python"
    assert run(python, "vllm_worker.py", tmp_path / "wide", answers) == right(answers)


def test_llama_cpp_converts_it(trained: Path, tmp_path: Path) -> None:
    converter = TOOLS / "llama_cpp" / "convert_hf_to_gguf.py"
    gguf = tmp_path / "tiny.gguf"
    command = [PYTHONS["4"], converter, trained, "--outfile", gguf, "--outtype", "bf16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = subprocess.run(
        [PYTHONS["4"], HERE / "gguf_worker.py", gguf], capture_output=True, text=True, check=True
    )
    report = json.loads(shown.stdout)
    assert report["general.architecture"] == "nemotron"
    assert report["nemotron.block_count"] == 4
    assert report["nemotron.attention.head_count_kv"] == 8
    assert report["nemotron.rope.dimension_count"] == 8
    assert report["tokenizer.ggml.add_bos_token"] is False
    assert report["tokenizer.ggml.eos_token_id"] == 3
    assert report["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert report["tokens"][5] == "<extra_id_1>"
    control, unknown = 3, 2
    assert report["types"][:6] == [control, unknown, control, control, control, control]
    weights = load_file(trained / "model.safetensors")
    gamma = weights["model.norm.weight"].float() + 1
    assert torch.allclose(torch.tensor(report["norm"]), gamma, atol=1e-2)
    assert report["tensors"] == len(weights)
