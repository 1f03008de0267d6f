"""One engine on one CPU, loaded and timed in a process of its own; used by `cpu_peers`.

    PYTHON bench/measurements/cpu_worker.py openvino|transformers|vllm FOLDER VOCABULARY

Prints one JSON line. Run by another environment's Python, so it imports nothing of the project but
for its own engine, whose decoding is then measured beside the memory's bandwidth, taking turns.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

Generate = Callable[[list[list[int]], int], None]
"""So many new tokens for each prompt, all prompts at once."""
PROMPT, ANSWER, LONG_PROMPT = 128, 64, 512
BATCHES = (8, 16, 32)
TURNS = 5


def openvino(folder: Path) -> Generate:
    from nemotron_engine.cpu import CpuEngine
    from nemotron_engine.request import GenerationChunk, GenerationRequest

    engine = CpuEngine(folder)
    names = itertools.count()

    def generate(prompts: list[list[int]], tokens: int) -> None:
        ended = threading.Semaphore(0)

        def on_chunk(chunk: object) -> None:
            assert isinstance(chunk, GenerationChunk), chunk
            if chunk.finish_reason:
                ended.release()

        common = {"max_tokens": tokens, "min_tokens": tokens, "end_ids": ()}
        requests = [
            GenerationRequest(request_id=str(next(names)), input_ids=tuple(ids), **common)
            for ids in prompts
        ]
        engine.submit_all([(request, on_chunk) for request in requests])
        for _ in prompts:
            ended.acquire()

    return generate


def transformers(folder: Path) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def generate(prompts: list[list[int]], tokens: int) -> None:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        assert found.shape[1] == len(prompts[0]) + tokens

    return generate


def vllm(folder: Path) -> Generate:
    from vllm import LLM, SamplingParams

    engine = LLM(str(folder), dtype="bfloat16", max_model_len=4096, max_num_seqs=64)

    def generate(prompts: list[list[int]], tokens: int) -> None:
        settings = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        for one in engine.generate(asked, settings, use_tqdm=False):
            assert len(one.outputs[0].token_ids) == tokens

    return generate


def memory(pid: int, field: str) -> int:
    """Bytes, of a field of its status."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def beside_bandwidth(decode: Callable[[], float]) -> list[tuple[float, float]]:
    """Tokens/s, and the bytes/s at which memory was read just before and after, a few times."""
    from nemotron_build.hardware import read_bandwidth

    found = []
    before = read_bandwidth()
    for _ in range(TURNS):
        rate, after = decode(), read_bandwidth()
        found.append((rate, (before + after) / 2))
        before = after
    return found


def main() -> None:
    name, folder, vocabulary = sys.argv[1:]
    rng = random.Random(1)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[rng.randrange(300, int(vocabulary)) for _ in range(length)] for _ in range(count)]

    start = time.perf_counter()
    generate = {"openvino": openvino, "transformers": transformers, "vllm": vllm}[name](
        Path(folder)
    )
    loaded = time.perf_counter() - start

    def seconds(count: int, length: int, tokens: int) -> float:
        asked = prompts(count, length)
        start = time.perf_counter()
        generate(asked, tokens)
        return time.perf_counter() - start

    for count, length in ((1, PROMPT), (1, LONG_PROMPT), (BATCHES[-1], PROMPT)):
        seconds(count, length, 8)  # warm: what is compiled or packed at first use

    def decode() -> float:
        first = seconds(1, PROMPT, 1)
        return (ANSWER - 1) / (seconds(1, PROMPT, ANSWER) - first)

    rates = {
        "decode, batch 1": statistics.median(decode() for _ in range(TURNS)),
        "prefill": LONG_PROMPT / seconds(1, LONG_PROMPT, 1),
    }
    for count in BATCHES:
        rates[f"{count} at once"] = count * ANSWER / seconds(count, PROMPT, ANSWER)
    this = psutil.Process()
    processes = [this.pid, *(child.pid for child in this.children(recursive=True))]
    result = {
        "tokens_per_second": rates,
        "load_seconds": loaded,
        "rss": sum(memory(pid, "VmRSS") for pid in processes),
        "peak_rss": sum(memory(pid, "VmHWM") for pid in processes),
    }
    if name == "openvino":  # last, for it takes memory of its own
        result["beside_bandwidth"] = beside_bandwidth(decode)
    print("\n" + json.dumps(result), flush=True)
    os._exit(0)  # without the engines' own ways down, some of which hang


if __name__ == "__main__":
    main()
