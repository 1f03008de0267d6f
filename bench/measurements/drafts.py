"""The CPU engine with a draft, beside itself without one.

The model is the random one of `cpu_peers` (242 M parameters, 16 layers, BF16), or one of other
sizes. Its draft are its first layers (`--draft-layers`), and n-grams of the text. On random weights
such a draft is hardly ever right, so the model is measured a second time with damped later layers:
what they add to the hidden state is multiplied by `--damping`. That changes the acceptance and
nothing else, since each step reads and computes the same.

Each engine is started anew in every run, in turn. Decode is greedy, one request at a time, from the
first token to the last; the tokens per step and the acceptance are the engine's own counts. The
expected gain is that of `nemotron plan` for this acceptance, from the bytes that are read alone.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measurements.cpu_peers import SHAPE, large_tokenizer
from bench.measurements.dropped_layers import damp_layers, drop_layers
from bench.measurements.random_nemo import Shape, write_nemo
from bench.measurements.timing import in_turn, summary
from nemotron_bench.draft import DraftCounts
from nemotron_build.draft_plan import draft_plan, tokens_per_step
from nemotron_build.engine_folder import build_engine
from nemotron_build.hardware import Hardware
from nemotron_build.plan import make_plan, shape_of
from nemotron_build.profile import NGRAM, Profile, load_profile
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_engine.client import EngineClient, new_key
from nemotron_engine.protocol import Chunk, Load, Request

MODELS = ("random", "damped")
ENGINES = ("none", NGRAM, "draft")
PROMPT, ANSWER, WARM_UP = 128, 64, 8
LOAD_SECONDS, ANSWER_SECONDS = 300.0, 600.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=SHAPE.layers, help="layers of the model")
    parser.add_argument("--hidden", type=int, default=SHAPE.hidden, help="its hidden size")
    parser.add_argument("--draft-layers", type=int, default=2, help="layers of the draft")
    parser.add_argument("--draft-tokens", type=int, default=4, help="tokens proposed in a step")
    parser.add_argument("--damping", type=float, default=0.05, help="factor of the later layers")
    parser.add_argument("--answers", type=int, default=8, help="answers in a run of an engine")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    prepare(options)
    names = [f"{model} {engine}" for model in MODELS for engine in ENGINES]
    rates: dict[str, list[float]] = {name: [] for name in names}
    counts: dict[str, DraftCounts] = {}
    answers: dict[str, list[list[int]]] = {}
    for run, name in in_turn(options.runs, names):
        model, engine = name.split()
        rate, counts[name], tokens = decode(options.work / f"{model}-{engine}", options.answers)
        rates[name].append(rate)
        answers.setdefault(name, tokens)
        print(f"{run + 1}: {name} {rate:.1f} tokens/s", flush=True)
    return {
        "parameters": shape(options).nbytes // 2,
        "layers": options.layers,
        "draft_layers": options.draft_layers,
        "draft_tokens": options.draft_tokens,
        "damping": options.damping,
        "engines": {name: figures(options, name, rates, counts[name]) for name in names},
        "equal_answers": {
            name: sum(map(list.__eq__, answers[name], answers[f"{name.split()[0]} none"]))
            for name in names
        },
        "answers": options.answers,
    }


def shape(options: argparse.Namespace) -> Shape:
    return Shape(options.layers, options.hidden, SHAPE.heads, SHAPE.kv_heads, SHAPE.vocab, tp=1)


def prepare(options: argparse.Namespace) -> None:
    """Write the models, their drafts and the engines, unless they are there already."""
    work: Path = options.work
    if not (work / "random").exists():
        source = write_nemo(work / "source", shape(options), large_tokenizer(), small=True)
        convert(source, work / "random", Options(Parallel(1, 1), Format.HF))
    if not (work / "damped").exists():
        damp_layers(work / "random", work / "damped", options.draft_layers, options.damping)
    for model in MODELS:
        if not (small := work / f"{model}-small").exists():
            drop_layers(work / model, small, options.draft_layers)
        for name in (model, small.name):
            if not (checkpoint := work / f"{name}-checkpoint").exists():
                convert(work / name, checkpoint, Options(Parallel(1, 1)))
        drafts = {"proposer": None, "none": None, NGRAM: NGRAM}
        for name, draft in (*drafts.items(), ("draft", str(work / f"{model}-proposer"))):
            if not (engine := work / f"{model}-{name}").exists():
                source_name = f"{small.name if name == 'proposer' else model}-checkpoint"
                build_engine(work / source_name, engine, profile(options, draft))


def profile(options: argparse.Namespace, draft: str | None) -> Profile:
    return load_profile("cpu").model_copy(
        update={"draft": draft, "draft_tokens": options.draft_tokens}
    )


def decode(folder: Path, answers: int) -> tuple[float, DraftCounts, list[list[int]]]:
    """Return an engine's tokens per second at one request, its draft's counts, and the answers."""
    rng = random.Random(1)
    rates, texts = [], []
    with engine(folder) as ask:
        for number in range(WARM_UP + answers):
            ids = [rng.randrange(300, SHAPE.vocab) for _ in range(PROMPT)]
            first, last, tokens, load = ask(ids)
            if number >= WARM_UP:
                rates.append((len(tokens) - 1) / (last - first))
                texts.append(tokens)
    counts = DraftCounts(
        steps=load.draft_steps, proposed=load.draft_proposed, accepted=load.draft_accepted
    )
    return statistics.median(rates), counts, texts


Ask = Callable[[list[int]], tuple[float, float, list[int], Load]]
"""Return the times of an answer's first and last tokens, the tokens, and the engine's load."""


@contextmanager
def engine(folder: Path) -> Iterator[Ask]:
    """Run an engine's process, as `nemotron serve` does."""
    with tempfile.TemporaryDirectory(prefix="engine-") as scratch:
        path = Path(scratch, "engine.sock")
        command = [sys.executable, "-m", "nemotron_engine", "--lane", "cpu", "--socket", path]
        process = subprocess.Popen([*command, folder])
        times: list[float] = []
        tokens: list[int] = []
        loads: list[Load] = []
        finished, loaded = threading.Event(), threading.Event()

        def on_chunks(chunks: Sequence[Chunk]) -> None:
            for chunk in chunks:
                assert chunk.finish_reason in ("", "length"), chunk
                times.append(time.perf_counter())
                tokens.extend(chunk.token_ids)
                if chunk.finish_reason:
                    finished.set()

        def on_load(load: Load) -> None:
            loads.append(load)
            loaded.set()

        client = EngineClient(path, on_chunks=on_chunks, on_load=on_load)
        client.start()
        client.hello(LOAD_SECONDS)

        def ask(ids: list[int]) -> tuple[float, float, list[int], Load]:
            times.clear()
            tokens.clear()
            finished.clear()
            loaded.clear()
            client.ask([Request(key=new_key(), input_ids=ids, max_tokens=ANSWER)])
            assert finished.wait(ANSWER_SECONDS)
            client.query()
            assert loaded.wait(ANSWER_SECONDS)
            return times[0], times[-1], [*tokens], loads[-1]

        try:
            yield ask
        finally:
            client.close()
            process.terminate()
            process.wait()


def figures(
    options: argparse.Namespace, name: str, rates: dict[str, list[float]], counts: DraftCounts
) -> dict[str, Any]:
    """Return the rates of an engine, and what its draft did."""
    model, kind = name.split()
    plain = rates[f"{model} none"]
    gains = [rate / other for rate, other in zip(rates[name], plain, strict=True)]
    result: dict[str, Any] = {"tokens_per_second": summary(rates[name])}
    if counts.steps:
        result |= {
            "gain": summary(gains),
            "tokens_per_step": counts.tokens_per_step,
            "accepted_of_proposed": counts.accepted / counts.proposed,
            "expected_gain": expected_gain(options, model, kind, counts.tokens_per_step),
        }
    return result


def expected_gain(options: argparse.Namespace, model: str, kind: str, tokens: float) -> float:
    """Return the gain by `nemotron plan` for an acceptance that gives so many tokens per step."""
    shape_and_size = shape_of(options.work / f"{model}-checkpoint", model)
    plan = make_plan(
        load_profile("cpu"),
        Hardware("any CPU", 0, 1e9, {}),
        shape=shape_and_size[0],
        vocab_size=shape_and_size[1],
    )
    draft = NGRAM if kind == NGRAM else str(options.work / f"{model}-small-checkpoint")
    acceptance = acceptance_of(tokens, options.draft_tokens)
    return draft_plan(plan, draft, options.draft_tokens, acceptance).gain


def acceptance_of(tokens: float, proposed: int) -> float:
    """Return the probability with which a step gives so many tokens, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_per_step(middle, proposed) < tokens else (low, middle)
    return low
