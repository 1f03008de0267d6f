"""The ensemble's twin in one model: the same inputs, outputs and text modules.

It asks `tensorrt_llm` itself, one thread for each request, so it sees at once what Triton hides
from the steps of an ensemble: that its client has cancelled or just hung up.
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
from nemotron_core.wire import ENGINE_INPUTS, FOREIGN_ENGINE_INPUTS, TEXT_INPUTS
from nemotron_engine.inner_request import forget_all, responses
from nemotron_engine.meter import FLUSH_SECONDS, Meter, Timer
from nemotron_engine.prompt import Prompt, Prompting
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

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
WATCH_SECONDS = 0.05
QUEUE_IS_FULL = "Maximum queue size"
"""How TensorRT-LLM's C++ backend says so, among other words."""
PASSED_ON = {one.name: one.engine for one in TEXT_INPUTS if one.engine}


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._prompting = Prompting.of_model(args)
        self._drain_file = Path(parameter(args, "drain_file"))
        self._seconds = int(parameter(args, "request_seconds"))
        self._max_requests = int(parameter(args, "max_requests"))
        self._pool = ThreadPoolExecutor(self._max_requests)
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        # Our own engines count for themselves.
        foreign = self._prompting.lane == "tensorrt"
        self._meter = Meter({"model": args["model_name"]}) if foreign else None
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch clients", daemon=True)
        self._watcher.start()

    def finalize(self) -> None:
        self._ended.set()
        self._pool.shutdown()
        self._watcher.join()
        forget_all()
        gc.collect()  # Triton's objects must not outlive the model: their end would crash it
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
            running = len(self._running)
        if running >= self._max_requests:
            raise Overloaded(f"{running} requests run or wait already", remedy="try again later")
        prompt = self._prompting.prepare(request)
        seconds = min(request.timeout() / 1e6 or math.inf, self._seconds)
        count = value(request, "num_return_sequences", default=1)
        kind = _RunningForeign if self._meter else _Running
        asked = kind(sender, prompt, self._prompting, count, time.monotonic() + seconds)
        with self._lock:
            asked.name_for_the_engine(request.request_id(), self._running)
            self._running[asked.engine_id] = asked
            if self._meter:
                asked.timer = Timer(self._meter)
                self._meter.add(PROMPT_TOKENS_METRIC, prompt.settings.num_input_tokens)
                self._meter.running(len(self._running))
        # Copies: what a request's inputs lie in is Triton's again when `execute` returns.
        inputs = {
            PASSED_ON[one.name()]: one.as_numpy().copy()
            for one in request.inputs()
            if one.name() in PASSED_ON
        }
        inputs |= kind.sampling(request)
        engine = pb_utils.InferenceRequest(
            model_name="tensorrt_llm",
            request_id=asked.request_id,
            requested_output_names=[],
            inputs=[
                *(one for one in prompt.tensors if one.name() in kind.inputs),
                *(pb_utils.Tensor(name, values) for name, values in inputs.items()),
            ],
        )
        self._pool.submit(self._answer, asked, engine)

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
                everyone = list(self._running.values())
            for running in everyone:
                running.stop_if_unwanted()
            if self._meter and time.monotonic() - flushed > FLUSH_SECONDS:
                flushed = time.monotonic()
                self._meter.flush({})


class _Running:
    """One request on its way, through an engine of ours: it stops answers one by one, by name."""

    inputs = frozenset(one.name for one in ENGINE_INPUTS)
    timer: Timer | None = None

    @staticmethod
    def sampling(_request: Any) -> dict[str, Any]:
        """Inputs that this engine would understand otherwise than the contract means them."""
        return {}

    def __init__(
        self, sender: Any, prompt: Prompt, prompting: Prompting, count: int, deadline: float
    ) -> None:
        self._sender = sender
        self._settings = prompt.settings
        self._prompting = prompting
        self._count = count
        self._deadline = deadline
        self._answers: dict[int, RunningAnswer] = {}
        self._stopped = self._ended = False
        self.engine_id = prompt.settings.stream_id
        self.request_id = ""
        # Triton 2.51 dies of a sender that is asked anything after its last response.
        self._sending = threading.Lock()

    def name_for_the_engine(self, client_id: str, _running: Mapping[str, _Running]) -> None:
        """Choose the request's id at the engine, by which its client may stop it too."""
        self.request_id = client_id

    @property
    def is_cancelled(self) -> bool:
        with self._sending:
            return not self._ended and bool(self._sender.is_cancelled())

    def push(self, response: Any) -> None:
        if response.has_error():
            self.fail(response.error())
            return
        outputs = {one.name(): one for one in response.output_tensors()}
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
            self._sender = None  # in a cycle with the answers it could outlive the model

    def _send(self, response: Any) -> None:
        with self._sending:
            self._sender.send(response)

    def stop_if_unwanted(self) -> None:
        """Once; the engine then ends the request, and with it the thread that waits for it."""
        if not self._stopped and self._is_unwanted():
            self._stop()

    def _is_unwanted(self) -> bool:
        return self.is_cancelled

    def _stop(self) -> None:
        self._stopped = True
        stop_engine(self.engine_id)

    def _stop_one(self, sequence: int) -> None:
        stop_engine(self._settings.sequence_id(sequence))

    def _answer(self, sequence: int) -> RunningAnswer:
        if sequence not in self._answers:
            self._answers[sequence] = RunningAnswer(
                self._prompting.tokenizer, self._settings, partial(self._stop_one, sequence)
            )
        return self._answers[sequence]


class _RunningForeign(_Running):
    """The same through TensorRT-LLM's C++ backend.

    It gives no finish reasons, stops whole requests only, and knows them by Triton's id alone.
    """

    inputs = frozenset(one.name for one in FOREIGN_ENGINE_INPUTS)
    _failed = _late = False

    @staticmethod
    def sampling(request: Any) -> dict[str, Any]:
        """It draws only if there is a `top_k` or a `top_p`, whatever the temperature."""
        temperature, top_k = value(request, "temperature"), value(request, "top_k")
        draws = samples(temperature, top_k)
        return {
            "runtime_top_k": np.array([[(top_k or 0) if draws else 1]], np.int32),
            "runtime_top_p": np.array([[value(request, "top_p") or 1.0]], np.float32),
            "temperature": np.array([[temperature or 1.0]], np.float32),
        }

    def name_for_the_engine(self, client_id: str, running: Mapping[str, _Running]) -> None:
        if client_id and client_id not in running:
            self.engine_id = client_id
        self.request_id = self.engine_id

    def _push(self, answer: RunningAnswer, step: Step) -> None:
        super()._push(answer, answer.with_reason(step))

    def fail(self, error: Any) -> None:
        if QUEUE_IS_FULL in error.message():
            super().fail(
                pb_utils.TritonError(f"{ErrorKind.OVERLOADED.value}{error.message()}", error.code())
            )
        else:
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

    def _stop_one(self, _sequence: int) -> None:
        finished = sum(answer.is_finished for answer in self._answers.values())
        # The one that asks is finished with this step, and not counted yet.
        if finished + 1 >= self._count and not self._stopped:
            self._stop()
