"""The model `tensorrt_llm`: tokens to tokens, with the inputs and outputs of the classic backend.

As a step of the ensemble it takes `prompt` from `preprocessing` and sends `piece` to
`postprocessing`.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import triton_python_backend_utils as pb_utils

from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from nemotron_core.wire import ENGINE_INPUTS, PIECE, PROMPT
from nemotron_engine.outbox import Outbox
from nemotron_engine.protocol import Chunk
from nemotron_engine.triton.answer import Answer
from nemotron_engine.triton.answers import Outcome
from nemotron_engine.triton.meter import Meter
from nemotron_engine.triton.piece import Acknowledgements, Piece
from nemotron_engine.triton.prompt_reader import HELLO_SECONDS
from nemotron_engine.triton.prompts import Prompts
from nemotron_engine.triton.requests import RunningRequests
from nemotron_engine.triton.running_request import AnsweredRequest, RunningRequest
from nemotron_engine.triton.tensors import (
    FINAL,
    Inputs,
    Options,
    blob_tensor,
    error_response,
    id_of,
    parameter,
    read_blobs,
    requested_names,
)
from nemotron_engine.triton.token_prompt import build_token_prompts
from nemotron_engine.triton.watchdog import start_watchdog

FLUSH_SECONDS = 0.5


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        start_watchdog()
        tokenizer = Path(parameter(args, "tokenizer_path"))
        self._tokenizer = Tokenizer(tokenizer)
        self._requests = RunningRequests(
            Path(parameter(args, "engine_socket")),
            tokenizer,
            acknowledgements=Acknowledgements(Path(parameter(args, "acknowledgements"))),
        )
        self._ended = threading.Event()
        self._flusher = threading.Thread(target=self._flush, name="metrics", daemon=True)
        self._flusher.start()

    def finalize(self) -> None:
        self._ended.set()
        self._flusher.join()
        self._requests.close()
        gc.collect()  # Triton's objects must not outlive the model: their destructors would crash

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._start(request, sender)
            except NemotronError as error:
                sender.send(error_response(error), flags=FINAL)

    def _start(self, request: Any, sender: Any) -> None:
        hello = self._requests.engine.hello(HELLO_SECONDS)
        names = requested_names(request)
        if (blobs := read_blobs(request, PROMPT)) is not None:
            prompts = Prompts.of_blob(blobs[0])
            self._requests.start(_Step(self._tokenizer, prompts, sender, names))
            return
        options = Options.of_request(request)
        inputs = Inputs(request, ENGINE_INPUTS, hello.capabilities.features)
        if inputs.value(0, "stop", default=False):
            if request_id := id_of(request):
                self._requests.engine.cancel(request_ids=[request_id])
            sender.send(flags=FINAL)
            return
        prompts = build_token_prompts(inputs, options, id_of(request), hello)
        self._requests.start(AnsweredRequest(None, prompts, sender, names, options))

    def _flush(self) -> None:
        meter = Meter()
        while not self._ended.wait(FLUSH_SECONDS):
            if self._requests.load is not None:
                meter.show(self._requests.load)
            self._requests.engine.query()
        meter.close()


class _Step(RunningRequest):
    """A request of the ensemble. Each response is one piece for `postprocessing`.

    Stop strings are matched here too, so that an answer that is sent whole ends at once.
    """

    is_acknowledged = True

    def __init__(self, tokenizer: Tokenizer, prompts: Prompts, sender: Any, names: Any) -> None:
        super().__init__(prompts, sender, names, Options())
        self._matchers = {
            index: Answer(tokenizer, answer, self.arrival_ns)
            for index, answer in enumerate(prompts.answers)
            if answer.stop_strings
        }
        self._remaining = set(range(len(prompts.answers)))
        self._kept = Outbox()
        self._has_begun = False

    def respond(self, chunks: Sequence[Chunk]) -> Outcome:
        outcome = Outcome()
        for chunk in chunks:
            index = self.index_of[chunk.key]
            if index not in self._remaining:
                continue
            if index in self._matchers and self._matchers[index].push(chunk):
                outcome.stopped.append(chunk.key)
            if chunk.finish_reason == "error":  # ends the whole request
                self._remaining.clear()
            elif chunk.finish_reason:
                self._remaining.discard(index)
            if self.prompts.settings.stream:
                outcome.responses.append(self._piece([chunk]))
            else:
                self._kept.put(chunk)
        outcome.is_last = not self._remaining
        if outcome.is_last and not self.prompts.settings.stream:
            outcome.responses = [self._piece(self._kept.take())]
        return outcome

    def _piece(self, chunks: Sequence[Chunk]) -> Any:
        keys = list(self.index_of)
        piece = Piece(keys=keys[:1], chunks=[(self.index_of[chunk.key], chunk) for chunk in chunks])
        if not self._has_begun:
            self._has_begun = True
            piece.keys, piece.answers = keys, self.prompts.answers
            piece.settings, piece.arrival_ns = self.prompts.settings, self.arrival_ns
        return pb_utils.InferenceResponse([blob_tensor(PIECE, [msgspec.msgpack.encode(piece)])])
