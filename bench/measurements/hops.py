"""What each hop of the serving path can carry, with an engine that takes no time.

    python -m bench.measurements.hops ENGINE [--streams 1,8,32,128] [--tokens 1000] [--runs 3]
        [--json OUT]

ENGINE is of the CPU lane, for its tokenizer and its limits. In one run, on the same machine: the
synthetic engine alone, through `tensorrt_llm` on Triton, through `ensemble` and `tensorrt_llm_bls`,
and through the gateway. With --real the engine is ENGINE itself, and the share of its own rate that
comes through each hop is what counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from bench.measurements.convert_speed import summary
from bench.measurements.serving import serving
from bench.measurements.synthetic_engine import SyntheticEngine, in_place_of_the_engine
from nemotron_bench.results import machine, versions
from nemotron_bench.targets import OpenAITarget, TritonTarget
from nemotron_engine.cpu import CpuEngine
from nemotron_engine.request import GenerationRequest

PROMPT_IDS = tuple(range(100, 116))
PROMPT = "river stone light house green cloud paper train"
WAIT = 300
WARM_TOKENS = 64
Ask = Callable[[int], int]
"""One answer of so many tokens; how many responses it came in."""
Load = Callable[[int, int], list[int]]
"""So many answers at once, of so many tokens each; how many responses each came in."""


def engine_alone(engine: Any) -> Load:
    """All requests are handed over together: threads that did so would hold each other up."""

    def load(streams: int, tokens: int) -> list[int]:
        ended = threading.Semaphore(0)
        responses = [0] * streams

        def on_chunk(number: int, chunk: Any) -> None:
            responses[number] += 1
            if isinstance(chunk, Exception) or chunk.finish_reason:
                ended.release()

        requests = [
            GenerationRequest(
                request_id=f"{number}-{time.monotonic_ns()}",
                input_ids=PROMPT_IDS,
                max_tokens=tokens,
                min_tokens=tokens,
                end_ids=(),
            )
            for number in range(streams)
        ]
        engine.submit_all([(r, partial(on_chunk, number)) for number, r in enumerate(requests)])
        for _ in requests:
            assert ended.acquire(timeout=WAIT)
        return responses

    return load


def engine_on_triton(target: TritonTarget) -> Ask:
    """The model `tensorrt_llm`, asked with token ids."""

    def ask(tokens: int) -> int:
        request = service_pb2.ModelInferRequest(model_name=target.model)
        inputs = {
            "input_ids": ("INT32", np.array([PROMPT_IDS], np.int32)),
            "input_lengths": ("INT32", np.array([[len(PROMPT_IDS)]], np.int32)),
            "request_output_len": ("INT32", np.array([[tokens]], np.int32)),
            "min_tokens": ("INT32", np.array([[tokens]], np.int32)),
            "streaming": ("BOOL", np.array([[True]])),
        }
        for name, (datatype, array) in inputs.items():
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        responses = list(target.stream(request.SerializeToString()))
        target.read(responses[-1])  # no error
        return len(responses)

    return ask


def text_model(target: TritonTarget | OpenAITarget) -> Ask:
    def ask(tokens: int) -> int:
        responses = list(target.stream(target.request(PROMPT, tokens)))
        assert target.read(responses[-1]).output_tokens == tokens
        return len(responses)

    return ask


@contextmanager
def gateway(triton: str) -> Iterator[OpenAITarget]:
    """In a process of its own, as in production."""
    with tempfile.TemporaryDirectory() as folder:
        ports = Path(folder, "ports.json")
        command = [
            *(sys.executable, "-m", "nemotron_cli", "gateway", "--triton", triton),
            "--no-access-log",
        ]
        process = subprocess.Popen([*command, "--port", "0", "--port-file", str(ports)])
        try:
            deadline = time.monotonic() + WAIT
            while not ports.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            port = json.loads(ports.read_text())["gateway"]
            with closing(OpenAITarget(f"127.0.0.1:{port}", "nemotron-4-340b-instruct")) as target:
                yield target
        finally:
            process.terminate()
            process.wait(WAIT)


@contextmanager
def all_hops(folder: Path, *, real: bool) -> Iterator[dict[str, Load]]:
    """Of a server and an engine of their own: where a process lies in memory makes a difference."""
    with ExitStack() as stack:
        if not real:
            stack.enter_context(in_place_of_the_engine())
        server = stack.enter_context(serving(folder))
        triton = f"{server.address}:{server.grpc}"
        # In this process; it waits while the others are measured.
        engine = (CpuEngine if real else SyntheticEngine)(folder)
        stack.callback(engine.close)
        tensorrt_llm, ensemble, bls = (
            stack.enter_context(closing(TritonTarget(triton, model)))
            for model in ("tensorrt_llm", "ensemble", "tensorrt_llm_bls")
        )
        yield {
            "engine alone": engine_alone(engine),
            "tensorrt_llm": clients(engine_on_triton(tensorrt_llm)),
            "ensemble": clients(text_model(ensemble)),
            "tensorrt_llm_bls": clients(text_model(bls)),
            "gateway": clients(text_model(stack.enter_context(gateway(triton)))),
        }


def clients(ask: Ask) -> Load:
    """A thread for each answer."""

    def load(streams: int, tokens: int) -> list[int]:
        with ThreadPoolExecutor(streams) as pool:
            return list(pool.map(ask, [tokens] * streams))

    return load


def measure(load: Load, streams: int, tokens: int) -> tuple[float, float]:
    """Tokens, and responses, per second."""
    start = time.perf_counter()
    responses = load(streams, tokens)
    seconds = time.perf_counter() - start
    assert all(responses)
    return streams * tokens / seconds, sum(responses) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--streams", default="1,8,32,128")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--real", action="store_true", help="with the engine itself")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts = [int(count) for count in options.streams.split(",")]
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for run in range(options.runs):
        with all_hops(options.engine, real=options.real) as hops:
            for streams in counts:
                for load in hops.values():
                    measure(load, streams, WARM_TOKENS)  # shapes are compiled at first use
            for streams in counts:
                for name, load in hops.items():
                    rates = measure(load, streams, options.tokens)
                    rows.setdefault(name, {}).setdefault(str(streams), []).append(rates)
                    print(
                        f"{run + 1}: {streams:4} {name:18} {rates[0]:12,.0f} tokens/s", flush=True
                    )
    result = {
        "machine": machine(),
        "versions": versions(),
        "engine": "real" if options.real else "synthetic",
        "tokens": options.tokens,
        "runs": options.runs,
        "tokens_per_second": {
            name: {count: summary([r[0] for r in rates]) for count, rates in by_count.items()}
            for name, by_count in rows.items()
        },
        "responses_per_second": {
            name: {count: summary([r[1] for r in rates]) for count, rates in by_count.items()}
            for name, by_count in rows.items()
        },
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
