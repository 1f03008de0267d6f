"""The model `postprocessing`: the engine's tokens to text, one response for each piece."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from nemotron_core.wire import PIECE
from nemotron_engine.client import EngineClient
from nemotron_engine.triton.answers import Answers
from nemotron_engine.triton.piece import Acknowledger, Piece
from nemotron_engine.triton.tensors import error_response, parameter, read_blobs, requested_names
from nemotron_engine.triton.watchdog import start_watchdog

POLL_SECONDS = 0.3
"""Time between two questions to Triton whether a request was cancelled. Of the ensemble's steps
only this one can learn it: Triton tells a step that begins after the cancellation."""
POLL_SPACING = 0.003
"""Least time between two questions about any requests. Each waits for Triton's process, and while
it does, no piece moves: with very many streams the questions would take half of the time."""
MAX_REQUESTS = 16384
"""Limit of the running requests, more than ever run at once. A request is left behind only if the
engine is lost; past the limit, the request without pieces for longest is dropped."""


@dataclass
class _Running:
    """A request whose answers are generated."""

    keys: list[bytes]
    answers: Answers
    next_poll: float = field(default_factory=lambda: time.monotonic() + POLL_SECONDS)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        start_watchdog()
        self._tokenizer = Tokenizer(Path(parameter(args, "tokenizer_path")))
        self._acknowledger = Acknowledger(Path(parameter(args, "acknowledgements")))
        self._engine = EngineClient(Path(parameter(args, "engine_socket")))
        self._engine.start()
        self._running: OrderedDict[bytes, _Running] = OrderedDict()
        self._next_poll = 0.0
        self._decoder = msgspec.msgpack.Decoder(Piece)

    def finalize(self) -> None:
        self._engine.close()
        self._acknowledger.close()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        blobs = read_blobs(request, PIECE)
        if blobs is None:
            return error_response(
                NemotronError("piece is missing", remedy="send prompts to the model ensemble")
            )
        try:
            piece = self._decoder.decode(blobs[0])
            key = piece.keys[0]
            running = self._running.get(key) or self._begin(piece)
        except (msgspec.MsgspecError, IndexError, NemotronError) as error:
            return error_response(
                NemotronError(f"not made by tensorrt_llm: {error}", where=PIECE.name)
            )
        names = requested_names(request)
        try:
            self._running.move_to_end(key)
            outcome = running.answers.respond(piece.chunks, names)
            if outcome.is_last:
                del self._running[key]
            elif self._must_poll(running) and request.is_cancelled():
                self._engine.cancel(running.keys)
        finally:
            self._acknowledger.send(key)
        return outcome.responses[0] if outcome.responses else running.answers.empty_response(names)

    def _must_poll(self, running: _Running) -> bool:
        """Return whether it is time to ask Triton about a request."""
        now = time.monotonic()
        if now < max(running.next_poll, self._next_poll):
            return False
        running.next_poll, self._next_poll = now + POLL_SECONDS, now + POLL_SPACING
        return True

    def _begin(self, piece: Piece) -> _Running:
        if piece.settings is None:
            raise NemotronError("the request is not known")
        answers = Answers(
            self._tokenizer,
            piece.answers,
            piece.settings,
            piece.arrival_ns,
            sends_empty_text=True,  # there must be a response to each piece
        )
        running = self._running[piece.keys[0]] = _Running(piece.keys, answers)
        if len(self._running) > MAX_REQUESTS:
            self._running.popitem(last=False)
        return running
