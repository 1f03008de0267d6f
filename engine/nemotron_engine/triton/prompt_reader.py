"""Requests with texts, from Triton's request to the sequences for the engine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.text import Tokenizer
from nemotron_core.wire import TEXT_INPUTS, Input
from nemotron_engine.client import EngineClient
from nemotron_engine.triton.builder import Builder
from nemotron_engine.triton.prompt import PromptBuilder
from nemotron_engine.triton.prompts import Prompts
from nemotron_engine.triton.tensors import (
    FINAL,
    Inputs,
    Options,
    error_response,
    id_of,
    parameter,
)

HELLO_SECONDS = 1.0
"""Time that the first request waits for an engine that is starting."""


class PromptReader:
    """Reads requests with texts, and tokenizes long prompts in a thread of its own.

    So a prompt of megabytes holds up nobody else: the tokenizer does not hold Python's lock.
    """

    def __init__(
        self,
        args: dict[str, str],
        builder: Callable[[Tokenizer], Builder],
        contract: Sequence[Input],
    ) -> None:
        """Read requests with the inputs of `contract` by what `builder` returns for a tokenizer."""
        self.tokenizer_path = Path(parameter(args, "tokenizer_path"))
        self.tokenizer = Tokenizer(self.tokenizer_path)
        self._builder = builder(self.tokenizer)
        self._contract = contract
        self._drain_file = Path(parameter(args, "drain_file"))
        self._long: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._build_long, name="long prompts", daemon=True)
        self._thread.start()

    @classmethod
    def of_text_model(cls, args: dict[str, str]) -> PromptReader:
        """Return the reader of a model with the inputs of `TEXT_INPUTS`."""
        clamps = parameter(args, "long_answers") == "clamp"
        return cls(args, partial(PromptBuilder, clamps=clamps), TEXT_INPUTS)

    def close(self) -> None:
        """End the thread."""
        self._long.put(None)
        self._thread.join()

    def _build_long(self) -> None:
        while (build := self._long.get()) is not None:
            build()

    def read(
        self,
        engine: EngineClient,
        request: Any,
        sender: Any,
        begin: Callable[[Prompts, Options], None],
    ) -> None:
        """Call `begin` with a request's prompts, now or from another thread.

        If the request is invalid, send it the error as its only response.
        """
        try:
            if self._drain_file.exists():
                raise NemotronError("ask another server", kind=ErrorKind.SHUTTING_DOWN)
            hello = engine.hello(HELLO_SECONDS)
            options = Options.of_request(request)
            inputs = Inputs(request, self._contract, hello.capabilities.features)
            request_id = id_of(request)
        except NemotronError as error:
            sender.send(error_response(error), flags=FINAL)
            return

        def build() -> None:
            try:
                begin(self._builder.build(inputs, options, request_id, hello), options)
            except NemotronError as error:
                sender.send(error_response(error), flags=FINAL)

        if self._is_long(inputs):
            self._long.put(build)
        else:
            build()

    def _is_long(self, inputs: Inputs) -> bool:
        try:
            return self._builder.is_long(inputs)
        except NemotronError:  # not UTF-8, which `build` reports
            return False
