"""The process of the CPU engine: openvino-genai's continuous batching, stepped in a loop.

    python -m nemotron_engine.cpu_process FOLDER SOCKET HOLD

It is a process of its own, because the library holds Python's lock for as long as a step takes.
SOCKET is an open file. A message to the process is a list of `Ask`, a `Cancel`, or `None` (the
end). The process sends back a `Report` when the model is loaded, and after each step that has
chunks to report. HOLD is the open file of a `SharedTime`: until that time tokens are held back,
except the first and the last of an answer. The process ends when the other side does.
"""

from __future__ import annotations

import faulthandler
import math
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.openvino import openvino, openvino_genai
from nemotron_engine.cpu_messages import Report
from nemotron_engine.mapped_file import give_back
from nemotron_engine.request import GenerationChunk, GenerationRequest, TimedOut
from nemotron_engine.shared_time import SharedTime

COMPILED_SHAPES = 512
"""Number of compiled shapes that OpenVINO keeps, one for each number of tokens in a step. With its
default, 5000, memory grows for hours before it levels off."""
PACKED_STEPS = 16
"""Number of steps after which every weight was used, with prompts and with single tokens, and is
therefore packed."""
KV_BLOCK_TOKENS = 32
"""Number of tokens in one block of OpenVINO's paged KV cache on a CPU."""
NO_ROOM = "the KV cache has no room for this request"
FINISH_REASONS = {
    openvino_genai.GenerationFinishReason.STOP: "stop",
    openvino_genai.GenerationFinishReason.LENGTH: "length",
}


@dataclass
class _Running:
    """A request that the pipeline works on."""

    number: int
    request: GenerationRequest
    deadline: float
    handle: Any = None
    scheduled_ns: int = 0
    has_begun: bool = False
    """Whether the first tokens were reported."""
    token_ids: list[int] = field(default_factory=list)
    """Tokens that were not reported yet."""
    log_probs: list[float] = field(default_factory=list)
    """Log-probabilities of `token_ids`, if requested."""

    def chunk(self, finish_reason: str | None = None) -> GenerationChunk:
        """Take the tokens that were not reported yet, as a chunk."""
        self.has_begun = True
        chunk = GenerationChunk(
            tuple(self.token_ids), tuple(self.log_probs), finish_reason, self.scheduled_ns
        )
        self.token_ids, self.log_probs = [], []
        return chunk


class Stepper:
    """The step loop: takes requests, steps while requests run, reports their tokens."""

    def __init__(self, folder: Path, connection: Connection, hold: SharedTime) -> None:
        self._weights = folder / CpuEngineSettings.WEIGHTS_NAME
        self._connection = connection
        self._inbox = select.poll()  # `Connection.poll` sets this up anew at each call
        self._inbox.register(connection.fileno(), select.POLLIN)
        self._pipeline = load_pipeline(folder)
        self._running: dict[int, _Running] = {}
        self._chunks: list[tuple[int, GenerationChunk | NemotronError]] = []
        self._hold = hold
        self._steps = 0

    def run(self) -> None:
        """Step until the other side sends the end. Raises `EOFError` or `OSError` if it died."""
        self._report()
        while self._take(wait=not self._running):
            now = time.time_ns()
            for running in self._running.values():
                running.scheduled_ns = running.scheduled_ns or now
            try:
                self._pipeline.step()
            except RuntimeError as error:  # a pipeline that has failed once fails forever
                self._report(str(error))
                return
            self._steps += 1
            if self._steps == PACKED_STEPS:  # from now on only embeddings are read from the file
                give_back(self._weights)
            self._collect()
            if self._chunks:
                self._hold.seconds = math.inf  # until the other side has read this and sets a time
                self._report()
        for running in list(self._running.values()):
            self._stop(running)
        self._report()

    def _report(self, failure: str | None = None) -> None:
        usage = self._pipeline.get_metrics().cache_usage / 100  # percent
        self._connection.send_bytes(Report(self._chunks, self._steps, usage, failure).pack())
        self._chunks = []

    def _take(self, *, wait: bool) -> bool:
        """Handle the messages since the last step. Return `False` after the end was received."""
        while wait or self._inbox.poll(0):
            item = self._connection.recv()
            if item is None:
                return False
            if isinstance(item, list):
                for ask in item:
                    self._start(_Running(*ask))
            elif (running := self._running.get(item.number)) is not None:
                self._stop(running)
            if self._chunks and not self._running:
                self._report()
            wait = not self._running
        return True

    def _start(self, running: _Running) -> None:
        self._running[running.number] = running
        ids = openvino.Tensor(np.array([running.request.input_ids], np.int64))
        try:
            config = _generation_config(running.request)
            running.handle = self._pipeline.add_request(running.number, ids, config)
        except RuntimeError as error:
            self._end(running, NemotronError(f"the engine refuses the request: {error}"))

    def _collect(self) -> None:
        now = time.monotonic()
        for running in list(self._running.values()):
            if now > running.deadline:
                running.handle.stop()
                self._end(running, TimedOut("the answer was not whole in the time allowed"))
                continue
            last = self._read(running)
            if last is not None:
                self._end(running, last)
            elif running.token_ids and (now >= self._hold.seconds or not running.has_begun):
                self._chunks.append((running.number, running.chunk()))

    def _read(self, running: _Running) -> GenerationChunk | NemotronError | None:
        """Take the request's new tokens. Return its last chunk or its error, if it has ended."""
        is_silent = True
        while running.handle.can_read():
            is_silent = False
            if not (outputs := running.handle.read()):  # the request outgrew the whole cache
                return NemotronError(NO_ROOM)
            (output,) = outputs.values()
            running.token_ids += output.generated_ids
            if running.request.log_probs:
                running.log_probs += output.generated_log_probs
            if (reason := FINISH_REASONS.get(output.finish_reason)) is not None:
                return running.chunk(reason)
        if is_silent and running.handle.get_status() == openvino_genai.GenerationStatus.IGNORED:
            return NemotronError(NO_ROOM)
        return None

    def _stop(self, running: _Running) -> None:
        running.handle.stop()
        self._end(running, GenerationChunk((), finish_reason="cancelled"))

    def _end(self, running: _Running, last: GenerationChunk | NemotronError) -> None:
        del self._running[running.number]
        if running.token_ids:
            self._chunks.append((running.number, running.chunk()))
        self._chunks.append((running.number, last))


def load_pipeline(folder: Path) -> Any:
    """Load the pipeline of an engine folder.

    Raises `NemotronError` if the folder is not an engine, and `RuntimeError` if loading fails.
    """
    settings = CpuEngineSettings.read(folder)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = settings.max_batch_size
    scheduler.max_num_batched_tokens = settings.max_num_tokens
    scheduler.num_kv_blocks = -(-settings.kv_cache_tokens // KV_BLOCK_TOKENS)
    scheduler.enable_prefix_caching = True
    scheduler.dynamic_split_fuse = True
    precision = _precision(settings)
    return openvino_genai.ContinuousBatchingPipeline(
        folder,
        scheduler,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,
            "CPU_RUNTIME_CACHE_CAPACITY": COMPILED_SHAPES,
        },
    )


def _precision(settings: CpuEngineSettings) -> Any:
    """Return the type to compute in, which is the KV cache's type too.

    A CPU without BF16 arithmetic (AVX2 only) computes a BF16 engine in F32: its attention kernel
    refuses a BF16 cache. The answers are then closer to F32, and the cache takes twice the memory.
    """
    if settings.dtype == "f32":
        return openvino.Type.f32
    if computes_in_bf16():
        return openvino.Type.bf16
    print("this CPU does not compute in BF16: the engine computes in F32", file=sys.stderr)
    return openvino.Type.f32


def computes_in_bf16() -> bool:
    """Return whether OpenVINO computes in BF16 on this machine's CPU."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _generation_config(request: GenerationRequest) -> Any:
    config = openvino_genai.GenerationConfig(
        max_new_tokens=request.max_tokens,
        min_new_tokens=request.min_tokens or 0,
        stop_token_ids=set(request.end_ids),
        do_sample=request.samples,
        logprobs=int(request.log_probs),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
    )
    # The library needs an id even if no token ends the answer.
    config.set_eos_token_id(request.end_ids[0] if request.end_ids else 0)
    config.ignore_eos = not request.end_ids
    if request.samples:
        config.temperature = _or(request.temperature, 1.0)
        config.top_p = request.top_p or 1.0
        if request.top_k:
            config.top_k = request.top_k
        config.rng_seed = request.seed or 0
    return config


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def main() -> None:
    folder, socket, hold = sys.argv[1:]
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent process decides when to end
    connection = Connection(int(socket))
    try:
        try:
            stepper = Stepper(Path(folder), connection, SharedTime(int(hold)))
        except (RuntimeError, NemotronError) as error:
            connection.send_bytes(Report([], 0, 0.0, str(error)).pack())
            return
        stepper.run()
    except (EOFError, OSError):
        """The other side has ended."""


if __name__ == "__main__":
    main()
