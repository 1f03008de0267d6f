"""Exact answers of the tiny model through vLLM, Triton and the gateway on one card, BF16 and FP8.

    python -m bench.measurements.gpu.exact RESULT.json [--python VLLM_PYTHON] [--cpu]

vLLM's CPU build has neither FP8 nor kernels for this model's heads. So `--cpu` takes BF16 alone,
a copy of the model whose heads are widened with zeros, and a part of the questions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.measurements.gpu.lane import add_options, hf_folder, vllm_engine, write_result
from bench.measurements.servers import Server, serving
from bench.measurements.serving import MODEL
from tests.serve.wire import messages_json, stream, text
from tests.tiny_nemotron.answers import ExactAnswer, load_answers
from tests.tiny_nemotron.nemo_file import NEMO
from tests.vllm.wide_heads import widen_heads

STREAMS = 64
TOKENS = 200
CPU_EVERY = 8
"""On a CPU, one of so many questions is asked."""
SECONDS = 120
Ask = Callable[[Server, ExactAnswer], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parser.parse_args()
    answers = load_answers()[:: CPU_EVERY if options.cpu else 1]
    result: dict[str, Any] = {"answers": len(answers), "exact": {}}
    for dtype in ("bf16",) if options.cpu else ("bf16", "fp8"):
        with tempfile.TemporaryDirectory() as folder:
            engine = build(Path(folder), dtype, options)
            with serving(engine) as server:
                result["exact"][dtype] = {
                    hop: exact_answers(server, ask, answers) for hop, ask in HOPS.items()
                }
        write_result(options, result)
        print(f"{dtype}: {result['exact'][dtype]} of {result['answers']}", flush=True)


def build(folder: Path, dtype: str, options: argparse.Namespace) -> Path:
    checkpoint = hf_folder(NEMO, folder / "hf", dtype)
    if options.cpu:
        widen_heads(checkpoint, folder / "wide")
        checkpoint = folder / "wide"
    return vllm_engine(checkpoint, folder / "engine", dtype, options)


def exact_answers(server: Server, ask: Ask, answers: list[ExactAnswer]) -> int:
    """Return the number of answers that are exactly right, asked many at once."""
    with ThreadPoolExecutor(STREAMS) as pool:
        texts = pool.map(lambda exact: ask(server, exact), answers)
        return sum(a == exact.question.answer for a, exact in zip(texts, answers, strict=True))


def ask_triton(server: Server, exact: ExactAnswer) -> str:
    fields = {"messages": messages_json(exact.question.messages), "max_tokens": TOKENS}
    endpoints: Any = SimpleNamespace(endpoints=server)
    return text(stream(endpoints, stream=True, **fields))


def ask_gateway(server: Server, exact: ExactAnswer) -> str:
    messages = [message.as_dict() for message in exact.question.messages]
    body = {"model": MODEL, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
    request = urllib.request.Request(
        f"http://{server.address}:{server.gateway}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


HOPS: dict[str, Ask] = {"ensemble": ask_triton, "gateway": ask_gateway}

if __name__ == "__main__":
    main()
