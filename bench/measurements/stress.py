"""Many streams at once with cancels, disconnects and bad requests: no wrong text, nothing left.

    python -m bench.measurements.stress CHECKPOINT [--minutes 10] [--streams 200] [--json OUT]
        [--plot OUT.svg]

CHECKPOINT is of the tiny trained model, whose answers are known to the letter. Each stream is a
thread that asks one question after the other, of `ensemble` or of `tensorrt_llm_bls`, and at random
reads to the end, cancels, hangs up, or sends nonsense. Sampled every second: RSS of each of the
server's processes and the requests that the engine holds. How flat the memory is, is said by the
slope of a straight line through the second half. Ends with 1 if anything was wrong or is left.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import statistics
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.measurements.convert_speed import machine
from nemotron_build.engine_folder import build_engine
from nemotron_build.profile import load_profile
from nemotron_client import (
    Client,
    ClientError,
    Generation,
    RequestRefused,
    Retries,
    ServerOverloaded,
    Timeouts,
)
from nemotron_core.metrics import RUNNING_METRIC
from nemotron_serve.server import TritonServer
from tests.serve.wire import metric
from tests.tiny_nemotron.answers import ExactAnswer, load_answers

MODELS = ("ensemble", "tensorrt_llm_bls")
BAD = (
    b"", b"{", b"[]", b"\xff\xfe", b'{"max_tokens": 5}', b'{"text_input": "a", "max_tokens": -1}',
    b'{"text_input": "a", "max_tokens": "x"}', b'{"messages": "no", "max_tokens": 5}',
    b'{"text_input": "a", "max_tokens": 5, "temperature": 1e999}', b'{"text_input": ["a", "b"]}',
    b'{"text_input": "a", "max_tokens": 5, "top_p": 7}', b'{"nothing": 1}', b"\0" * 100,
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    seconds: float
    rss: dict[str, int]
    running: float

    @property
    def total(self) -> int:
        return sum(self.rss.values())


@dataclass
class Stress:
    """What has happened so far."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, outcome: str, wrong: str = "") -> None:
        with self.lock:
            self.outcomes[outcome] += 1
            if wrong:
                self.wrong.append(wrong)


def run(
    server: TritonServer, streams: int, seconds: float, seed: int
) -> tuple[Stress, list[Sample]]:
    """Streams for that long; what happened, and one sample for each second."""
    stress = Stress()
    answers = load_answers()
    end = time.monotonic() + seconds
    threads = [
        threading.Thread(
            daemon=True,  # one that is stuck is counted, and keeps nobody
            target=_stream,
            args=(server, stress, answers, random.Random(seed + i), end),
        )
        for i in range(streams)
    ]
    for thread in threads:
        thread.start()
    samples = []
    start = time.monotonic()
    while time.monotonic() < end:
        samples.append(sample(server, time.monotonic() - start))
        time.sleep(1)
    patience = time.monotonic() + 120
    for thread in threads:
        thread.join(max(0, patience - time.monotonic()))
    stress.outcomes["stuck"] = sum(thread.is_alive() for thread in threads)
    return stress, samples


def sample(server: TritonServer, seconds: float) -> Sample:
    """RSS in bytes of Triton and of each of its models, and the requests that the engine holds."""
    triton = psutil.Process(server.process.pid)
    rss = {"tritonserver": triton.memory_info().rss}
    for process in triton.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            rss[_model(process)] = process.memory_info().rss
    return Sample(seconds, rss, metric(server, RUNNING_METRIC))


def _model(process: psutil.Process) -> str:
    """The name of the Triton model that runs in a process, else the process's own."""
    found = re.search(r"/models/(\w+)/", " ".join(process.cmdline()))
    return found[1] if found else process.name()


def slopes(samples: list[Sample]) -> dict[str, float]:
    """MB a minute that each process, and all together, grow by in the second half."""
    half = samples[len(samples) // 2 :]
    minutes = [one.seconds / 60 for one in half]
    names = [name for name in half[0].rss if all(name in one.rss for one in half)]
    growing = {name: [one.rss[name] / 1e6 for one in half] for name in names}
    growing["all"] = [one.total / 1e6 for one in half]
    return {
        name: round(statistics.linear_regression(minutes, values).slope, 3)
        for name, values in growing.items()
    }


def _stream(
    server: TritonServer,
    stress: Stress,
    answers: list[ExactAnswer],
    rng: random.Random,
    end: float,
) -> None:
    ends = server.endpoints
    url = f"{ends.address}:{ends.grpc}"
    with Client(url, timeouts=Timeouts(total=120), retries=Retries(attempts=1)) as client:
        while time.monotonic() < end:
            one = rng.choice(answers)
            kind = rng.random()
            try:
                if kind < 0.5:
                    _ask(client, stress, one)
                elif kind < 0.65:
                    _cancel(client, rng, one)
                    stress.count("cancelled")
                elif kind < 0.8:
                    _over_http(server, stress, rng, one)
                elif kind < 0.9:
                    _nonsense(server, stress, rng)
                else:
                    client.chat(_messages(one), Generation(max_tokens=0))
            except RequestRefused:
                stress.count("refused")
            except ServerOverloaded:
                stress.count("overloaded")
                time.sleep(0.2)
            except (ClientError, OSError, http.client.HTTPException, ValueError) as error:
                stress.count("failed", f"{type(error).__name__}: {error}")


def _messages(one: ExactAnswer) -> list[dict[str, str]]:
    return [message.as_dict() for message in one.question.messages]


def _ask(client: Client, stress: Stress, one: ExactAnswer) -> None:
    text = "".join(p.text for p in client.stream_chat(_messages(one), Generation(max_tokens=256)))
    same = text == one.question.answer
    stress.count("answered", "" if same else f"{text!r}, not {one.question.answer!r}")


def _cancel(client: Client, rng: random.Random, one: ExactAnswer) -> None:
    pieces = client.stream_chat(_messages(one), Generation(max_tokens=256))
    for _ in range(rng.randrange(8)):
        next(pieces, None)
    pieces.close()


def _over_http(server: TritonServer, stress: Stress, rng: random.Random, one: ExactAnswer) -> None:
    """Read to the end, or hang up in the middle without a word."""
    ends = server.endpoints
    leaves = rng.random() < 0.6
    body = {"messages": json.dumps(_messages(one)), "max_tokens": 256, "stream": True}
    connection = http.client.HTTPConnection(ends.address, ends.http, timeout=120)
    try:
        path = f"/v2/models/{rng.choice(MODELS)}/generate_stream"
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            text = response.read().decode(errors="replace")
            known = "overloaded" in text
            stress.count("overloaded" if known else "failed", "" if known else text)
            return
        if leaves:
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
        known = "overloaded" in events[-1]["error"]
        stress.count("overloaded" if known else "failed", "" if known else str(events[-1]))
        return
    text = "".join(event["text_output"] for event in events)
    same = text == one.question.answer
    stress.count("answered", "" if same else f"{text!r}, not {one.question.answer!r}")


def _nonsense(server: TritonServer, stress: Stress, rng: random.Random) -> None:
    ends = server.endpoints
    connection = http.client.HTTPConnection(ends.address, ends.http, timeout=120)
    try:
        body = rng.choice(BAD)
        connection.request("POST", f"/v2/models/{rng.choice(MODELS)}/generate_stream", body)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        refused = response.status >= http.HTTPStatus.BAD_REQUEST or "error" in text
        stress.count("refused", "" if refused else f"taken: {body!r}: {text[:200]}")
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    profile = load_profile("cpu")
    free = dict.fromkeys(type(profile.ports).model_fields, 0)
    profile = profile.model_copy(update={"ports": profile.ports.model_copy(update=free)})
    with tempfile.TemporaryDirectory() as folder:
        build_engine(options.checkpoint, Path(folder, "engine"), profile)
        with TritonServer(Path(folder, "engine"), profile) as server:
            stress, samples = run(server, options.streams, options.minutes * 60, options.seed)
            deadline = time.monotonic() + 30
            while metric(server, RUNNING_METRIC) and time.monotonic() < deadline:
                time.sleep(0.1)
            left = metric(server, RUNNING_METRIC)
            last = sample(server, samples[-1].seconds)
    growth = slopes(samples)
    result = {
        "machine": machine(),
        "minutes": options.minutes,
        "streams": options.streams,
        "seed": options.seed,
        "outcomes": dict(stress.outcomes),
        "wrong": stress.wrong[:20],
        "requests_left_in_the_engine": left,
        "rss_megabytes": {
            "half way": round(samples[len(samples) // 2].total / 1e6, 1),
            "at the end": round(last.total / 1e6, 1),
        },
        "growth_in_the_second_half_megabytes_per_minute": growth,
        "samples": [vars(one) for one in samples[:: max(1, len(samples) // 120)]],
    }
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        options.plot.write_text(plot(samples, growth["all"]))
    raise SystemExit(bool(stress.wrong or left or stress.outcomes["stuck"]))


COLOURS = ("#2a6", "#36c", "#c63", "#939", "#888", "#a80", "#088", "#b35")


def plot(samples: list[Sample], growth: float) -> str:
    """RSS over time as SVG: all together, and each process."""
    width, height, margin = 760, 320, 50
    plain = width - 3.6 * margin
    longest = max(one.seconds for one in samples)
    most = 1.15 * max(one.total for one in samples)

    def line(values: list[tuple[float, float]], colour: str) -> str:
        points = " ".join(
            f"{margin + seconds / longest * plain:.1f},"
            f"{height - margin - rss / most * (height - 2 * margin):.1f}"
            for seconds, rss in values
        )
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'

    series = {"all": [(one.seconds, one.total) for one in samples]} | {
        name: [(one.seconds, one.rss[name]) for one in samples if name in one.rss]
        for name in sorted(samples[-1].rss, key=lambda name: -samples[-1].rss[name])
    }
    drawn = "".join(
        line(values, colour)
        + f'<text x="{margin + plain + 12}" y="{margin + 18 * row}" fill="{colour}">{name}, '
        f"{values[-1][1] / 1e6:,.0f} MB</text>"
        for row, ((name, values), colour) in enumerate(zip(series.items(), COLOURS, strict=False))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/>{drawn}'
        f'<path d="M{margin} {margin}V{height - margin}h{plain}" fill="none" stroke="#000"/>'
        f'<text x="{margin}" y="{margin - 16}">RSS of the server, 0 to {most / 1e6:,.0f} MB; '
        f"in the second half {growth:+.2f} MB a minute</text>"
        f'<text x="{margin + plain}" y="{height - margin + 20}" text-anchor="end">'
        f"{longest:,.0f} s</text></svg>\n"
    )


if __name__ == "__main__":
    main()
