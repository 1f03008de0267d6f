"""Tokens a second of a reward model, at its engine and through the gateway, beside plain prefill.

A random model of 242 M parameters in BF16 gets a random head. One `nemotron serve` has it as a text
model, another as a reward model; both stay up, and are asked in turn. "prefill" is what the text
engine makes of the prompts when one token is asked for each, at its socket; "reward engine" are the
same lengths at the other socket; "gateway" are conversations of these lengths, each in a request
and a connection of its own. Every round has other texts, so no cache knows them.
"""

from __future__ import annotations

import argparse
import http
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench.measurements.cpu_peers import SHAPE, large_tokenizer
from bench.measurements.random_nemo import write_nemo
from bench.measurements.servers import Server, build_cpu_engine, engine_of, serving
from bench.measurements.timing import in_turn, summary
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_core.reward import ATTRIBUTES
from nemotron_core.text import Message, Tokenizer
from nemotron_engine.client import EngineClient, new_key
from nemotron_engine.protocol import Chunk, Request

PROMPT_TOKENS = 10
FLOOR = 0.9
"""Fraction of the prefill rate that a reward model should reach."""
CONNECT_SECONDS, ANSWER_SECONDS = 30.0, 600.0
WARM_UP = 4
"""Conversations that each is asked first; they do not count."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=1000, help="of a conversation; default 1000")
    parser.add_argument("--at-once", type=int, default=32, help="conversations; default 32")


def prepare(folder: Path) -> None:
    """Write the model with and without a head, unless it is there already."""
    if (folder / "reward").exists():
        return
    source = write_nemo(folder / "source", SHAPE, large_tokenizer(), small=True)
    convert(source, folder / "checkpoint", Options(Parallel(1, 1)))
    build_cpu_engine(folder / "checkpoint", folder / "text")
    _add_head(source)
    convert(source, folder / "checkpoint-reward", Options(Parallel(1, 1)))
    build_cpu_engine(folder / "checkpoint-reward", folder / "reward")


def _add_head(source: Path) -> None:
    numbers = np.random.default_rng(2).normal(0, 0.02, (len(ATTRIBUTES), SHAPE.hidden))
    for name, array in {"weight": numbers, "bias": numbers[:, 0]}.items():
        path = source / "model_weights" / f"model.rm_head.{name}"
        path.mkdir()
        meta = {"zarr_format": 2, "shape": array.shape, "chunks": array.shape, "dtype": "<f4"}
        rest = {"order": "C", "compressor": None, "filters": None, "fill_value": None}
        (path / ".zarray").write_text(json.dumps(meta | rest))
        (path / ".".join("0" * array.ndim)).write_bytes(array.astype("<f4").tobytes())
    settings = json.loads((source / "model_config.yaml").read_text())
    settings["reward_model_type"] = "regression"
    (source / "model_config.yaml").write_text(json.dumps(settings))


def conversation(tokenizer: Tokenizer, tokens: int, numbers: random.Random) -> list[Message]:
    """Return a conversation of random words with `tokens` tokens, or a few less."""
    words = [f"w{numbers.randrange(10**6)}" for _ in range(tokens)]

    def of(count: int) -> list[Message]:
        question = " ".join(words[:PROMPT_TOKENS])
        answer = " ".join(words[PROMPT_TOKENS:count])
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    low, high = PROMPT_TOKENS, tokens
    while low + 1 < high:
        middle = (low + high) // 2
        fits = len(tokenizer.encode_scored(of(middle))) <= tokens
        low, high = (middle, high) if fits else (low, middle)
    return of(low)


class Socket:
    """The engine of a server, asked at its socket."""

    def __init__(self, server: Server) -> None:
        self._open: set[bytes] = set()
        self._ended = threading.Event()
        self._errors: list[str] = []
        self._client = EngineClient(engine_of(server).socket, on_chunks=self._take)
        self._client.start()
        self._client.hello(CONNECT_SECONDS)

    def seconds(self, requests: Sequence[Request]) -> float:
        """Return the time until all requests, asked together, have ended."""
        self._open = {request.key for request in requests}
        self._ended.clear()
        begin = time.perf_counter()
        self._client.ask(requests)
        if not self._ended.wait(ANSWER_SECONDS) or self._errors:
            raise RuntimeError(f"the engine did not answer: {self._errors}")
        return time.perf_counter() - begin

    def close(self) -> None:
        self._client.close()

    def _take(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            if chunk.finish_reason:
                self._open.discard(chunk.key)
            if chunk.error:
                self._errors.append(chunk.error)
        if not self._open:
            self._ended.set()


def gateway_seconds(server: Server, conversations: Sequence[list[Message]]) -> float:
    """Return the time until the gateway has scored all conversations, asked at once."""

    def score(messages: list[Message]) -> None:
        connection = http.client.HTTPConnection(server.address, server.gateway, ANSWER_SECONDS)
        headers = {"Content-Type": "application/json"}
        body = json.dumps({"messages": messages})
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"no scores: {answer}")

    with ThreadPoolExecutor(len(conversations)) as pool:
        begin = time.perf_counter()
        list(pool.map(score, conversations))
        return time.perf_counter() - begin


def measure(options: argparse.Namespace) -> dict[str, Any]:
    prepare(options.work)
    tokenizer = Tokenizer(options.work / "reward" / "tokenizer.model")
    numbers = random.Random(0)  # words of a measurement
    with serving(options.work / "text") as text, serving(options.work / "reward") as reward:
        sockets = {"prefill": Socket(text), "reward engine": Socket(reward)}

        def rate(name: str, at_once: int = options.at_once) -> float:
            conversations = [
                conversation(tokenizer, options.tokens, numbers) for _ in range(at_once)
            ]
            lengths = [len(tokenizer.encode_scored(messages)) for messages in conversations]
            if name == "gateway":
                return sum(lengths) / gateway_seconds(reward, conversations)
            scores = name == "reward engine"
            requests = [
                Request(
                    key=new_key(),
                    input_ids=[numbers.randrange(10, SHAPE.vocab) for _ in range(length)],
                    max_tokens=int(not scores),
                    scores=scores,
                )
                for length in lengths
            ]
            return sum(lengths) / sockets[name].seconds(requests)

        names = (*sockets, "gateway")
        for name in names:
            rate(name, WARM_UP)
        return _results(in_turn(options.runs, names), names, rate, sockets.values())


def _results(
    turns: Any, names: Sequence[str], rate: Callable[[str], float], sockets: Any
) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in names}
    for run, name in turns:
        rates[name].append(rate(name))
        print(f"{run + 1}: {name} {rates[name][-1]:.0f} tokens/s", flush=True)
    for socket in sockets:
        socket.close()
    prefill = rates["prefill"]
    fractions = {
        name: summary([a / b for a, b in zip(rates[name], prefill, strict=True)])
        for name in names[1:]
    }
    slow = [name for name, values in fractions.items() if values["median"] < FLOOR]
    return {
        "tokens_per_second": {name: summary(values) for name, values in rates.items()},
        "fraction_of_prefill": fractions,
        "faults": [f"{name} is below {FLOOR} of the prefill rate" for name in slow],
    }
