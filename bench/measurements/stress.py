"""Many concurrent streams with cancellations, disconnects and malformed requests.

Each stream is a thread that sends one question after the other to `ensemble` or `tensorrt_llm_bls`,
and at random reads to the end, cancels, disconnects, or sends a malformed request. The checkpoint
is the tiny trained model's, whose exact answers are known. Every second the RSS of each process of
the server and the number of requests in the engine are sampled; the growth of memory is the slope
of a straight line through the second half. Faults are wrong texts, stuck streams and requests that
remain in the engine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measurements.processes import family, rss_by_name
from bench.measurements.servers import (
    Server,
    build_cpu_engine,
    engine_of,
    serving,
)
from nemotron_client import (
    Client,
    ClientError,
    Generation,
    RequestRefused,
    Retries,
    ServerOverloaded,
    Timeouts,
)
from nemotron_engine.probe import Probe
from tests.tiny_nemotron.answers import ExactAnswer, load_answers

MODELS = ("ensemble", "tensorrt_llm_bls")
BAD = (
    b"", b"{", b"[]", b"\xff\xfe", b'{"max_tokens": 5}', b'{"text_input": "a", "max_tokens": -1}',
    b'{"text_input": "a", "max_tokens": "x"}', b'{"messages": "no", "max_tokens": 5}',
    b'{"text_input": "a", "max_tokens": 5, "temperature": 1e999}', b'{"text_input": ["a", "b"]}',
    b'{"text_input": "a", "max_tokens": 5, "top_p": 7}', b'{"nothing": 1}', b"\0" * 100,
)  # fmt: skip
"""Bodies of malformed requests."""
JOIN_SECONDS = 120
"""Time after the end within which a stream must end, or it counts as stuck."""
PROBE_SECONDS = 30
IDLE_SECONDS = 30
"""Time within which the engine must have no requests after the streams ended."""
SAMPLES = 120
"""Number of samples to record, at most about twice as many."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint of the tiny model")
    parser.add_argument("--minutes", type=float, default=10, help="default 10")
    parser.add_argument("--streams", type=int, default=200, help="default 200")
    parser.add_argument("--seed", type=int, default=1, help="default 1")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    engine = options.work / "engine"
    if not engine.exists():
        build_cpu_engine(options.checkpoint, engine)
    with serving(engine) as server:
        stress, samples = run(server, options.streams, options.minutes * 60, options.seed)
        deadline = time.monotonic() + IDLE_SECONDS
        while running(server) and time.monotonic() < deadline:
            time.sleep(0.1)
        remaining = running(server)
        last = sample(server, samples[-1].seconds)
    faults = stress.faults[:20]
    if stress.outcomes["stuck"]:
        faults.append(f"{stress.outcomes['stuck']} streams are stuck")
    if remaining:
        faults.append(f"{remaining:g} requests remain in the engine")
    return {
        "outcomes": dict(stress.outcomes),
        "faults": faults,
        "requests_left_in_the_engine": remaining,
        "rss_megabytes": {
            "half way": round(samples[len(samples) // 2].total / 1e6, 1),
            "at the end": round(last.total / 1e6, 1),
        },
        "growth_in_the_second_half_megabytes_per_minute": slopes(samples),
        "samples": [vars(sample) for sample in samples[:: max(1, len(samples) // SAMPLES)]],
    }


@dataclass(frozen=True)
class Sample:
    """State of the server at one time."""

    seconds: float
    rss: dict[str, int]
    """Bytes by process."""
    running: float
    """Number of requests in the engine."""

    @property
    def total(self) -> int:
        return sum(self.rss.values())


@dataclass
class Stress:
    """Outcomes of the requests so far."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, outcome: str, fault: str = "") -> None:
        with self.lock:
            self.outcomes[outcome] += 1
            if fault:
                self.faults.append(fault)


def run(server: Server, streams: int, seconds: float, seed: int) -> tuple[Stress, list[Sample]]:
    """Run the streams. Returns the outcomes, and one sample per second."""
    stress = Stress()
    answers = load_answers()
    end = time.monotonic() + seconds
    threads = [
        threading.Thread(
            daemon=True,  # a stuck stream must not keep the process
            target=_stream,
            args=(server, stress, answers, random.Random(seed + number), end),
        )
        for number in range(streams)
    ]
    for thread in threads:
        thread.start()
    samples = []
    start = time.monotonic()
    while time.monotonic() < end:
        samples.append(sample(server, time.monotonic() - start))
        time.sleep(1)
    deadline = time.monotonic() + JOIN_SECONDS
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    stress.outcomes["stuck"] = sum(thread.is_alive() for thread in threads)
    return stress, samples


def sample(server: Server, seconds: float) -> Sample:
    """Return the RSS of each of the server's processes, and the engine's requests."""
    return Sample(seconds, rss_by_name(family([server.pid])), running(server))


def running(server: Server) -> int:
    """Return the number of requests in the engine."""
    engine = engine_of(server)
    with Probe(engine.socket, PROBE_SECONDS) as probe:
        return probe.load().running


def slopes(samples: list[Sample]) -> dict[str, float]:
    """Return the growth of each process, and of all, in the second half in MB per minute."""
    half = samples[len(samples) // 2 :]
    minutes = [sample.seconds / 60 for sample in half]
    names = [name for name in half[0].rss if all(name in sample.rss for sample in half)]
    megabytes = {name: [sample.rss[name] / 1e6 for sample in half] for name in names}
    megabytes["all"] = [sample.total / 1e6 for sample in half]
    return {
        name: round(statistics.linear_regression(minutes, values).slope, 3)
        for name, values in megabytes.items()
    }


def _stream(
    server: Server,
    stress: Stress,
    answers: list[ExactAnswer],
    rng: random.Random,
    end: float,
) -> None:
    url = f"{server.address}:{server.grpc}"
    with Client(url, timeouts=Timeouts(total=120), retries=Retries(attempts=1)) as client:
        while time.monotonic() < end:
            answer = rng.choice(answers)
            draw = rng.random()
            try:
                if draw < 0.5:
                    _read_all(client, stress, answer)
                elif draw < 0.65:
                    _cancel(client, rng, answer)
                    stress.count("cancelled")
                elif draw < 0.8:
                    _over_http(server, stress, rng, answer)
                elif draw < 0.9:
                    _send_malformed(server, stress, rng)
                else:
                    client.chat(_messages(answer), Generation(max_tokens=0))
            except RequestRefused:
                stress.count("refused")
            except ServerOverloaded:
                stress.count("overloaded")
                time.sleep(0.2)
            except (ClientError, OSError, http.client.HTTPException, ValueError) as error:
                stress.count("failed", f"{type(error).__name__}: {error}")


def _messages(answer: ExactAnswer) -> list[dict[str, str]]:
    return [message.as_dict() for message in answer.question.messages]


def _read_all(client: Client, stress: Stress, answer: ExactAnswer) -> None:
    text = "".join(
        p.text for p in client.stream_chat(_messages(answer), Generation(max_tokens=256))
    )
    _check(stress, text, answer)


def _check(stress: Stress, text: str, answer: ExactAnswer) -> None:
    expected = answer.question.answer
    stress.count("answered", "" if text == expected else f"{text!r}, not {expected!r}")


def _cancel(client: Client, rng: random.Random, answer: ExactAnswer) -> None:
    pieces = client.stream_chat(_messages(answer), Generation(max_tokens=256))
    for _ in range(rng.randrange(8)):
        next(pieces, None)
    pieces.close()


def _over_http(server: Server, stress: Stress, rng: random.Random, answer: ExactAnswer) -> None:
    """Read to the end, or disconnect in the middle of the answer."""
    disconnects = rng.random() < 0.6
    body = {"messages": json.dumps(_messages(answer)), "max_tokens": 256, "stream": True}
    connection = http.client.HTTPConnection(server.address, server.http, timeout=120)
    try:
        path = f"/v2/models/{rng.choice(MODELS)}/generate_stream"
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            text = response.read().decode(errors="replace")
            _count_error(stress, text)
            return
        if disconnects:
            response.read(rng.randrange(1, 600))
            stress.count("hung up")
            return
        lines = response.read().decode().splitlines()
    finally:
        connection.close()
    events = [
        json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")
    ]
    if events and "error" in events[-1]:
        _count_error(stress, events[-1]["error"])
        return
    text = "".join(event["text_output"] for event in events)
    _check(stress, text, answer)


def _count_error(stress: Stress, text: str) -> None:
    overloaded = "overloaded" in text
    stress.count("overloaded" if overloaded else "failed", "" if overloaded else text)


def _send_malformed(server: Server, stress: Stress, rng: random.Random) -> None:
    connection = http.client.HTTPConnection(server.address, server.http, timeout=120)
    try:
        body = rng.choice(BAD)
        connection.request("POST", f"/v2/models/{rng.choice(MODELS)}/generate_stream", body)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        refused = response.status >= http.HTTPStatus.BAD_REQUEST or "error" in text
        stress.count("refused", "" if refused else f"accepted: {body!r}: {text[:200]}")
    finally:
        connection.close()
