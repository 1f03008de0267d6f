"""The ensemble's twin in one model: the same inputs, outputs and text modules.

It asks `tensorrt_llm` itself, one thread for each request, so it sees at once what Triton hides
from the steps of an ensemble: that its client has cancelled or just hung up.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from nemotron_convert.errors import NemotronError
from nemotron_engine.answering import RunningAnswer, Step, read_step, stop_engine
from nemotron_engine.contract import TEXT_INPUTS
from nemotron_engine.prompting import Prompt, Prompting
from nemotron_engine.triton import elements, is_fault, parameter, refusal, shutting_down, told_fault

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
MAX_RUNNING = 256
"""Requests at once, each with a thread of its own; more wait their turn."""
WATCH_SECONDS = 0.05
PASSED_ON = {one.name: one.engine for one in TEXT_INPUTS if one.engine}


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._prompting = Prompting.of_model(args)
        self._drain_file = Path(parameter(args, "drain_file"))
        self._pool = ThreadPoolExecutor(MAX_RUNNING)
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch clients", daemon=True)
        self._watcher.start()

    def finalize(self) -> None:
        self._ended.set()
        self._pool.shutdown()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            if self._drain_file.exists():
                sender.send(shutting_down(), flags=FINAL)
                continue
            try:
                prompt = self._prompting.prepare(request)
            except NemotronError as error:
                sender.send(refusal(error), flags=FINAL)
                continue
            running = _Running(sender, prompt, self._prompting)
            # Copies: what a request's inputs lie in is Triton's again when `execute` returns.
            inputs = prompt.tensors + [
                pb_utils.Tensor(PASSED_ON[one.name()], one.as_numpy().copy())
                for one in request.inputs()
                if one.name() in PASSED_ON
            ]
            engine = pb_utils.InferenceRequest(
                model_name="tensorrt_llm",
                request_id=request.request_id(),
                requested_output_names=[],
                inputs=inputs,
            )
            with self._lock:
                self._running[prompt.settings.stream_id] = running
            self._pool.submit(self._answer, running, engine)

    def _answer(self, running: _Running, engine: Any) -> None:
        try:
            if not running.is_cancelled:
                for response in engine.exec(decoupled=True):
                    running.push(response)
        except pb_utils.TritonModelException as error:
            running.fail(pb_utils.TritonError(str(error), pb_utils.TritonError.INTERNAL))
        finally:
            with self._lock:
                del self._running[running.stream_id]
            running.end()

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            with self._lock:
                everyone = list(self._running.values())
            for running in everyone:
                running.stop_if_cancelled()


class _Running:
    """One request on its way."""

    def __init__(self, sender: Any, prompt: Prompt, prompting: Prompting) -> None:
        self._sender = sender
        self._settings = prompt.settings
        self._prompting = prompting
        self._answers: dict[int, RunningAnswer] = {}
        self._stopped = self._ended = False
        # Triton 2.51 dies of a sender that is asked anything after its last response.
        self._sending = threading.Lock()

    @property
    def stream_id(self) -> str:
        return self._settings.stream_id

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
        if is_fault(step.finish_reason):
            self._send(told_fault(step.finish_reason))
            return
        tensors = self._answer(step).push(step)
        if tensors:
            self._send(pb_utils.InferenceResponse(tensors))

    def fail(self, error: Any) -> None:
        self._send(pb_utils.InferenceResponse(error=error))

    def end(self) -> None:
        with self._sending:
            self._ended = True
            self._sender.send(flags=FINAL)

    def _send(self, response: Any) -> None:
        with self._sending:
            self._sender.send(response)

    def stop_if_cancelled(self) -> None:
        """Once; the engine then ends the request, and with it the thread that waits for it."""
        if not self._stopped and self.is_cancelled:
            self._stopped = True
            stop_engine(self.stream_id)

    def _answer(self, step: Step) -> RunningAnswer:
        if step.sequence not in self._answers:
            stop = partial(stop_engine, self._settings.sequence_id(step.sequence))
            self._answers[step.sequence] = RunningAnswer(
                self._prompting.tokenizer, self._settings, stop
            )
        return self._answers[step.sequence]
