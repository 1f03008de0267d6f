"""Tokens per second that each hop of the serving path carries, with an engine that takes no time.

Each run measures the synthetic engine alone, through `tensorrt_llm` on Triton, through `ensemble`
and `tensorrt_llm_bls`, and through the gateway. The engine folder gives the tokenizer and the
limits. With `--real` its engine generates, and the result is the fraction of the engine's own rate
that each hop carries.
"""

from __future__ import annotations

import argparse
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

from bench.measurements.serving import gateway, serving
from bench.measurements.synthetic_engine import SyntheticEngine, synthetic_engines
from bench.measurements.timing import summary
from nemotron_bench.targets import OpenAITarget, TritonTarget
from nemotron_engine.cpu import CpuEngine
from nemotron_engine.request import GenerationRequest

PROMPT_IDS = tuple(range(100, 116))
PROMPT = "river stone light house green cloud paper train"
MODEL = "nemotron-4-340b-instruct"
WAIT = 300
WARM_TOKENS = 64
SendRequest = Callable[[int], int]
"""Request an answer of a number of tokens; returns the number of responses."""
Load = Callable[[int, int], list[int]]
"""Request a number of answers at once, of a number of tokens each.

Returns each answer's number of responses.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine folder of the CPU lane")
    parser.add_argument("--streams", default="1,8,32,128", help="default 1,8,32,128")
    parser.add_argument("--tokens", type=int, default=1000, help="per answer, default 1000")
    parser.add_argument("--real", action="store_true", help="generate with the engine itself")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    counts = [int(count) for count in options.streams.split(",")]
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for run in range(options.runs):
        with all_hops(options.engine, real=options.real) as hops:
            for streams in counts:
                for load in hops.values():
                    measure_load(load, streams, WARM_TOKENS)  # shapes are compiled at first use
            for streams in counts:
                for name, load in hops.items():
                    rates = measure_load(load, streams, options.tokens)
                    rows.setdefault(name, {}).setdefault(str(streams), []).append(rates)
                    print(
                        f"{run + 1}: {streams:4} {name:18} {rates[0]:12,.0f} tokens/s", flush=True
                    )
    return {
        quantity: {
            name: {
                count: summary([rate[position] for rate in rates])
                for count, rates in by_count.items()
            }
            for name, by_count in rows.items()
        }
        for position, quantity in enumerate(("tokens_per_second", "responses_per_second"))
    }


def engine_alone(engine: Any) -> Load:
    """Submit all requests in one call: threads that submit one each would delay each other."""

    def load(streams: int, tokens: int) -> list[int]:
        finished = threading.Semaphore(0)
        responses = [0] * streams

        def on_chunk(number: int, chunk: Any) -> None:
            responses[number] += 1
            if isinstance(chunk, Exception) or chunk.finish_reason:
                finished.release()

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
        engine.submit_all(
            [(request, partial(on_chunk, number)) for number, request in enumerate(requests)]
        )
        for _ in requests:
            assert finished.acquire(timeout=WAIT)
        return responses

    return load


def engine_on_triton(target: TritonTarget) -> SendRequest:
    """Request answers of the model `tensorrt_llm` with token ids."""

    def send_request(tokens: int) -> int:
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
        target.read(responses[-1])  # raises if the request failed
        return len(responses)

    return send_request


def text_model(target: TritonTarget | OpenAITarget) -> SendRequest:
    """Request answers of a text model."""

    def send_request(tokens: int) -> int:
        responses = list(target.stream(target.request(PROMPT, tokens)))
        assert target.read(responses[-1]).output_tokens == tokens
        return len(responses)

    return send_request


@contextmanager
def all_hops(folder: Path, *, real: bool) -> Iterator[dict[str, Load]]:
    """Return the load of each hop, by name.

    Each call starts a server and an engine: the results depend on where a process lies in memory.
    """
    with ExitStack() as stack:
        if not real:
            stack.enter_context(synthetic_engines())
        server = stack.enter_context(serving(folder))
        triton = f"{server.endpoints.address}:{server.endpoints.grpc}"
        # In this process; it is idle while the other hops are measured.
        engine = (CpuEngine if real else SyntheticEngine)(folder)
        stack.callback(engine.close)
        tensorrt_llm, ensemble, bls = (
            stack.enter_context(closing(TritonTarget(triton, model)))
            for model in ("tensorrt_llm", "ensemble", "tensorrt_llm_bls")
        )
        http_port = stack.enter_context(gateway(triton)).port
        openai_api = OpenAITarget(f"127.0.0.1:{http_port}", MODEL)
        yield {
            "engine alone": engine_alone(engine),
            "tensorrt_llm": clients(engine_on_triton(tensorrt_llm)),
            "ensemble": clients(text_model(ensemble)),
            "tensorrt_llm_bls": clients(text_model(bls)),
            "gateway": clients(text_model(stack.enter_context(closing(openai_api)))),
        }


def clients(send_request: SendRequest) -> Load:
    """Return a load with one thread per answer."""

    def load(streams: int, tokens: int) -> list[int]:
        with ThreadPoolExecutor(streams) as pool:
            return list(pool.map(send_request, [tokens] * streams))

    return load


def measure_load(load: Load, streams: int, tokens: int) -> tuple[float, float]:
    """Return tokens and responses per second."""
    start = time.perf_counter()
    responses = load(streams, tokens)
    seconds = time.perf_counter() - start
    assert all(responses)
    return streams * tokens / seconds, sum(responses) / seconds
