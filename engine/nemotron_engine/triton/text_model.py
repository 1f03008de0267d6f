"""The direct text model: the whole way from a prompt to its answer in one step, without BLS.

It is the code of two Triton models: `tensorrt_llm_bls`, which streams, and `generate`, which sends
one response, because Triton refuses plain inference on models that stream.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_engine.triton.prompt_reader import PromptReader
from nemotron_engine.triton.prompts import Prompts
from nemotron_engine.triton.requests import RunningRequests
from nemotron_engine.triton.running_request import AnsweredRequest
from nemotron_engine.triton.tensors import Options, parameter, requested_names
from nemotron_engine.triton.watchdog import start_watchdog

SENDER_THREADS = 2
"""Sending waits for Triton's process, so a second thread nearly doubles the rate, and more do not
raise it further."""


class TextModel:
    """A Triton model on the engine's socket."""

    decoupled: bool

    def initialize(self, args: dict[str, str]) -> None:
        """See Triton's Python backend."""
        start_watchdog()
        self._reader = PromptReader.of_text_model(args)
        self._requests = RunningRequests(
            Path(parameter(args, "engine_socket")),
            self._reader.tokenizer_path,
            threads=SENDER_THREADS,
        )

    def execute(self, requests: list[Any]) -> None:
        """See Triton's Python backend."""
        for request in requests:
            self._start(request)

    def finalize(self) -> None:
        """See Triton's Python backend."""
        self._reader.close()
        self._requests.close()
        gc.collect()  # Triton's objects must not outlive the model: their destructors would crash

    def _start(self, request: Any) -> None:
        names, sender = requested_names(request), request.get_response_sender()

        def begin(prompts: Prompts, options: Options) -> None:
            if prompts.settings.stream and not self.decoupled:
                raise NemotronError(
                    "this model answers with one response",
                    where="stream",
                    remedy="send the request to the model ensemble",
                )
            running = AnsweredRequest(self._reader.tokenizer, prompts, sender, names, options)
            self._requests.start(running)

        self._reader.read(self._requests.engine, request, sender, begin)
