"""A process that loads one engine on the CPU and times it, for the measurement `cpu_peers`.

    PYTHON bench/measurements/cpu_worker.py openvino|transformers|vllm FOLDER VOCABULARY

Prints one JSON line. It also runs in environments of other engines, so it imports the project only
for `openvino`, whose decoding is measured in turn with the memory's bandwidth.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

Generate = Callable[[list[list[int]], int], None]
"""Generate a number of tokens for each prompt, all prompts at once."""
PROMPT, ANSWER, LONG_PROMPT = 128, 64, 512
BATCHES = (8, 16, 32)
TURNS = 5
LOAD_SECONDS = 300


def openvino(folder: Path) -> Generate:
    """Start the engine's process, as `nemotron serve` does, and ask it over its socket."""
    from nemotron_engine.client import EngineClient, new_key
    from nemotron_engine.protocol import Chunk, Request

    socket = Path(tempfile.mkdtemp(prefix="engine-"), "engine.sock")
    engine = ("-m", "nemotron_engine", "--lane", "cpu", "--once", "--socket", str(socket))
    subprocess.Popen([sys.executable, *engine, str(folder)])
    finished = threading.Semaphore(0)

    def on_chunks(chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            assert chunk.finish_reason in ("", "length"), chunk
            if chunk.finish_reason:
                finished.release()

    client = EngineClient(socket, on_chunks=on_chunks)
    client.start()
    client.hello(LOAD_SECONDS)

    def generate(prompts: list[list[int]], tokens: int) -> None:
        client.ask(
            [
                Request(key=new_key(), input_ids=ids, max_tokens=tokens, min_tokens=tokens)
                for ids in prompts
            ]
        )
        for _ in prompts:
            finished.acquire()

    return generate


def transformers(folder: Path) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def generate(prompts: list[list[int]], tokens: int) -> None:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            sequences = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        assert sequences.shape[1] == len(prompts[0]) + tokens

    return generate


def vllm(folder: Path) -> Generate:
    from vllm import LLM, SamplingParams

    engine = LLM(str(folder), dtype="bfloat16", max_model_len=4096, max_num_seqs=64)

    def generate(prompts: list[list[int]], tokens: int) -> None:
        settings = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        requests = [{"prompt_token_ids": ids} for ids in prompts]
        for result in engine.generate(requests, settings, use_tqdm=False):
            assert len(result.outputs[0].token_ids) == tokens

    return generate


def memory(pid: int, field: str) -> int:
    """Return a field of `/proc/PID/status` in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def decode_with_bandwidth(decode: Callable[[], float]) -> list[tuple[float, float]]:
    """Return pairs of tokens/s and the bytes/s at which memory was read just before and after."""
    from nemotron_build.hardware import read_bandwidth

    pairs = []
    before = read_bandwidth()
    for _ in range(TURNS):
        rate, after = decode(), read_bandwidth()
        pairs.append((rate, (before + after) / 2))
        before = after
    return pairs


def main() -> None:
    name, folder, vocabulary = sys.argv[1:]
    rng = random.Random(1)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[rng.randrange(300, int(vocabulary)) for _ in range(length)] for _ in range(count)]

    start = time.perf_counter()
    generate = {"openvino": openvino, "transformers": transformers, "vllm": vllm}[name](
        Path(folder)
    )
    load_seconds = time.perf_counter() - start

    def seconds(count: int, length: int, tokens: int) -> float:
        batch = prompts(count, length)
        start = time.perf_counter()
        generate(batch, tokens)
        return time.perf_counter() - start

    for count, length in ((1, PROMPT), (1, LONG_PROMPT), (BATCHES[-1], PROMPT)):
        seconds(count, length, 8)  # warm-up: kernels are compiled and weights packed at first use

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
        "load_seconds": load_seconds,
        "rss": sum(memory(pid, "VmRSS") for pid in processes),
        "peak_rss": sum(memory(pid, "VmHWM") for pid in processes),
    }
    if name == "openvino":  # last, because it takes memory itself
        result["decode_with_bandwidth"] = decode_with_bandwidth(decode)
    print("\n" + json.dumps(result), flush=True)
    os._exit(0)  # skips the engines' shutdown, which hangs in some


if __name__ == "__main__":
    main()
