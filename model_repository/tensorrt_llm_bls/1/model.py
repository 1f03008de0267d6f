"""The model `tensorrt_llm_bls`: the ensemble in one model, with the same inputs, outputs and text.

It sends requests to `tensorrt_llm` itself, with one thread for each. So it sees at once what Triton
hides from the steps of an ensemble: that a client cancelled or disconnected.
"""

from __future__ import annotations

import gc
import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.metrics import PROMPT_TOKENS_METRIC
from nemotron_core.text import Tokenizer
from nemotron_core.wire import ENGINE_INPUTS, FOREIGN_ENGINE_INPUTS, TEXT_INPUTS
from nemotron_engine.inner_request import release_all, responses
from nemotron_engine.meter import FLUSH_SECONDS, Meter, Timer
from nemotron_engine.prompt import Prompt, PromptBuilder
from nemotron_engine.request import Overloaded, TimedOut, samples
from nemotron_engine.running_answer import RunningAnswer, Step, read_step, stop_engine
from nemotron_engine.triton import (
    elements,
    error_response,
    error_response_of_text,
    is_engine_failure,
    parameter,
    shutting_down,
    value,
)
from nemotron_engine.watchdog import start_watchdog

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
WATCH_SECONDS = 0.05
QUEUE_IS_FULL = "Maximum queue size"
"""Part of the error text of TensorRT-LLM's C++ backend when its queue is full."""
ENGINE_NAMES = {entry.name: entry.engine_name for entry in TEXT_INPUTS if entry.engine_name}
"""Name at the engine of each input that is passed on unchanged."""


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        start_watchdog()
        self._prompts = PromptBuilder.of_model(args)
        self._drain_file = Path(parameter(args, "drain_file"))
        self._seconds = int(parameter(args, "request_seconds"))
        self._max_requests = int(parameter(args, "max_requests"))
        self._pool = ThreadPoolExecutor(self._max_requests)
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        # Our own engines count their requests themselves.
        foreign = parameter(args, "foreign_engine") == "true"
        self._meter = Meter({"model": args["model_name"]}) if foreign else None
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch clients", daemon=True)
        self._watcher.start()

    def finalize(self) -> None:
        self._ended.set()
        self._pool.shutdown()
        self._watcher.join()
        release_all()
        gc.collect()  # Triton's objects must not outlive the model: their destructors would crash
        if self._meter:
            self._meter.close()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            if self._drain_file.exists():
                sender.send(shutting_down(), flags=FINAL)
                continue
            try:
                self._start(request, sender)
            except NemotronError as error:
                sender.send(error_response(error), flags=FINAL)

    def _start(self, request: Any, sender: Any) -> None:
        with self._lock:
            active = len(self._running)
        if active >= self._max_requests:
            raise Overloaded(f"{active} requests run or wait already", remedy="try again later")
        prompt = self._prompts.build(request)
        deadline = time.monotonic() + min(request.timeout() / 1e6 or math.inf, self._seconds)
        count = value(request, "num_return_sequences", default=1)
        request_type = _RunningForeign if self._meter else _Running
        running = request_type(sender, prompt, self._prompts.tokenizer, count, deadline)
        with self._lock:
            running.choose_request_id(request.request_id(), self._running)
            self._running[running.engine_id] = running
            if self._meter:
                running.timer = Timer(self._meter)
                self._meter.add(PROMPT_TOKENS_METRIC, prompt.settings.num_input_tokens)
                self._meter.running(len(self._running))
        # Copies, because Triton reuses the memory of a request's inputs when `execute` returns.
        inputs = {
            ENGINE_NAMES[tensor.name()]: tensor.as_numpy().copy()
            for tensor in request.inputs()
            if tensor.name() in ENGINE_NAMES
        }
        inputs |= request_type.sampling(request)
        engine = pb_utils.InferenceRequest(
            model_name="tensorrt_llm",
            request_id=running.request_id,
            requested_output_names=[],
            inputs=[
                *(tensor for tensor in prompt.tensors if tensor.name() in request_type.inputs),
                *(pb_utils.Tensor(name, values) for name, values in inputs.items()),
            ],
        )
        self._pool.submit(self._answer, running, engine)

    def _answer(self, running: _Running, engine: Any) -> None:
        try:
            if not running.is_cancelled:
                for response in responses(engine):
                    running.push(response)
        except pb_utils.TritonModelException as error:
            running.fail(pb_utils.TritonError(str(error), pb_utils.TritonError.INTERNAL))
        finally:
            with self._lock:
                del self._running[running.engine_id]
                if self._meter:
                    self._meter.running(len(self._running))
            running.end()

    def _watch(self) -> None:
        flushed = time.monotonic()
        while not self._ended.wait(WATCH_SECONDS):
            with self._lock:
                all_running = list(self._running.values())
            for running in all_running:
                running.stop_if_unwanted()
            if self._meter and time.monotonic() - flushed > FLUSH_SECONDS:
                flushed = time.monotonic()
                self._meter.flush({})


class _Running:
    """A running request at one of our own engines, which stop each sequence by its id."""

    inputs = frozenset(engine_input.name for engine_input in ENGINE_INPUTS)
    timer: Timer | None = None

    @staticmethod
    def sampling(_request: Any) -> dict[str, Any]:
        """Return the inputs that this engine interprets differently from the contract."""
        return {}

    def __init__(
        self, sender: Any, prompt: Prompt, tokenizer: Tokenizer, count: int, deadline: float
    ) -> None:
        self._sender = sender
        self._settings = prompt.settings
        self._tokenizer = tokenizer
        self._count = count
        self._deadline = deadline
        self._answers: dict[int, RunningAnswer] = {}
        self._stopped = self._ended = False
        self.engine_id = prompt.settings.stream_id
        self.request_id = ""
        # Triton 2.51 crashes if a sender is called after its last response.
        self._sending = threading.Lock()

    def choose_request_id(self, client_id: str, _running: Mapping[str, _Running]) -> None:
        """Set the request's id at the engine, by which its client may stop it too."""
        self.request_id = client_id

    @property
    def is_cancelled(self) -> bool:
        with self._sending:
            return not self._ended and bool(self._sender.is_cancelled())

    def push(self, response: Any) -> None:
        if response.has_error():
            self.fail(response.error())
            return
        outputs = {tensor.name(): tensor for tensor in response.output_tensors()}
        if not outputs:
            return
        step = read_step(lambda name: elements(outputs.get(name)))
        if is_engine_failure(step.finish_reason):
            self._send(error_response_of_text(step.finish_reason))
            return
        if self.timer and step.token_ids:
            self.timer.tokens(len(step.token_ids))
        self._push(self._answer(step.sequence), step)

    def _push(self, answer: RunningAnswer, step: Step) -> None:
        if tensors := answer.push(step):
            self._send(pb_utils.InferenceResponse(tensors))

    def fail(self, error: Any) -> None:
        self._send(pb_utils.InferenceResponse(error=error))

    def end(self) -> None:
        with self._sending:
            self._ended = True
            self._sender.send(flags=FINAL)
            self._sender = None  # otherwise it could outlive the model, in a reference cycle

    def _send(self, response: Any) -> None:
        with self._sending:
            self._sender.send(response)

    def stop_if_unwanted(self) -> None:
        """Stop the request, once, if nobody waits for it. Its end also ends the waiting thread."""
        if not self._stopped and self._is_unwanted():
            self._stop()

    def _is_unwanted(self) -> bool:
        return self.is_cancelled

    def _stop(self) -> None:
        self._stopped = True
        stop_engine(self.engine_id)

    def _stop_sequence(self, sequence: int) -> None:
        stop_engine(self._settings.sequence_id(sequence))

    def _answer(self, sequence: int) -> RunningAnswer:
        if sequence not in self._answers:
            self._answers[sequence] = RunningAnswer(
                self._tokenizer, self._settings, partial(self._stop_sequence, sequence)
            )
        return self._answers[sequence]


class _RunningForeign(_Running):
    """A running request at TensorRT-LLM's C++ backend.

    The backend gives no finish reasons, stops only whole requests, and by Triton's id alone.
    """

    inputs = frozenset(engine_input.name for engine_input in FOREIGN_ENGINE_INPUTS)
    _failed = _late = False

    @staticmethod
    def sampling(request: Any) -> dict[str, Any]:
        """See `_Running`. The backend samples only with a `top_k` or a `top_p`."""
        temperature, top_k = value(request, "temperature"), value(request, "top_k")
        draws = samples(temperature, top_k)
        return {
            "runtime_top_k": np.array([[(top_k or 0) if draws else 1]], np.int32),
            "runtime_top_p": np.array([[value(request, "top_p") or 1.0]], np.float32),
            "temperature": np.array([[temperature or 1.0]], np.float32),
        }

    def choose_request_id(self, client_id: str, running: Mapping[str, _Running]) -> None:
        if client_id and client_id not in running:
            self.engine_id = client_id
        self.request_id = self.engine_id

    def _push(self, answer: RunningAnswer, step: Step) -> None:
        super()._push(answer, answer.with_reason(step))

    def fail(self, error: Any) -> None:
        if QUEUE_IS_FULL in error.message():
            text = f"{ErrorKind.OVERLOADED.value}{error.message()}"
            error = pb_utils.TritonError(text, error.code())
        super().fail(error)
        self._failed = True

    def end(self) -> None:
        if self._late:
            self._send(error_response(TimedOut("the answer was not whole in the time allowed")))
        elif not self._failed:
            for sequence in range(self._count):
                answer = self._answer(sequence)
                if not answer.is_finished:
                    super()._push(answer, answer.with_reason(Step(sequence, [], ""), last=True))
        super().end()

    def _is_unwanted(self) -> bool:
        self._late = self._late or time.monotonic() > self._deadline
        return self._late or super()._is_unwanted()

    def _stop_sequence(self, _sequence: int) -> None:
        finished = sum(answer.is_finished for answer in self._answers.values())
        # The sequence that stops now ends with this step, and is not counted yet.
        if finished + 1 >= self._count and not self._stopped:
            self._stop()
