"""What each hop of the serving path can carry, with an engine that takes no time.

    python -m bench.hops ENGINE [--streams 1,8,32,128] [--tokens 1000] [--runs 3] [--json OUT]

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
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.convert_speed import summary
from bench.serving import serving
from bench.synthetic_engine import SyntheticEngine, in_place_of_the_engine
from nemotron_bench.measure import machine, versions
from nemotron_bench.targets import OpenAITarget, TritonTarget
from nemotron_engine.cpu import CpuEngine
from nemotron_engine.request import GenerationRequest

PROMPT_IDS = tuple(range(100, 116))
PROMPT = "river stone light house green cloud paper train"
WAIT = 300
Ask = Callable[[int], int]
"""One answer of so many tokens; how many responses it came in."""


def engine_alone(engine: Any) -> Ask:
    def ask(tokens: int) -> int:
        done = threading.Event()
        chunks = [0]

        def on_chunk(chunk: Any) -> None:
            chunks[0] += 1
            if isinstance(chunk, Exception) or chunk.finish_reason:
                done.set()

        request = GenerationRequest(
            request_id=f"{threading.get_ident()}-{time.monotonic_ns()}",
            input_ids=PROMPT_IDS,
            max_tokens=tokens,
            min_tokens=tokens,
            end_ids=(),
        )
        engine.submit_all([(request, on_chunk)])
        assert done.wait(WAIT)
        return chunks[0]

    return ask


def engine_on_triton(stub: Any) -> Ask:
    """The model `tensorrt_llm`, asked with token ids."""

    def ask(tokens: int) -> int:
        request = service_pb2.ModelInferRequest(model_name="tensorrt_llm")
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
        responses = 0
        for response in stub.ModelStreamInfer(iter([request])):
            assert not response.error_message, response.error_message
            responses += 1
        return responses

    return ask


def text_model(target: TritonTarget | OpenAITarget) -> Ask:
    def ask(tokens: int) -> int:
        events = list(target.ask(PROMPT, tokens))
        assert max(event.output_tokens for event in events) == tokens
        return len(events)

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


def measure(ask: Ask, streams: int, tokens: int) -> tuple[float, float]:
    """Tokens, and responses, per second of so many streams at once; each asks once."""
    responses = [0] * streams

    def stream(number: int) -> None:
        responses[number] = ask(tokens)

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(streams)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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
    with ExitStack() as stack:
        if not options.real:
            stack.enter_context(in_place_of_the_engine())
        server = stack.enter_context(serving(options.engine))
        triton = f"{server.address}:{server.grpc}"
        stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(triton))
        # In this process; it waits while the others are measured.
        engine = (CpuEngine if options.real else SyntheticEngine)(options.engine)
        stack.callback(engine.close)
        hops = {
            "engine alone": engine_alone(engine),
            "tensorrt_llm": engine_on_triton(stub),
            **{
                model: text_model(stack.enter_context(closing(TritonTarget(triton, model))))
                for model in ("ensemble", "tensorrt_llm_bls")
            },
            "gateway": text_model(stack.enter_context(gateway(triton))),
        }
        rows: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in hops}
        for streams in counts:
            for ask in hops.values():
                measure(ask, streams, options.tokens)  # warm: shapes are compiled at first use
        for run in range(options.runs):
            for streams in counts:
                for name, ask in hops.items():
                    rates = measure(ask, streams, options.tokens)
                    rows[name].setdefault(str(streams), []).append(rates)
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
