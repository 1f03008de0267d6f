"""The model `preprocessing`: prompts to tokens, with every check that needs no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import triton_python_backend_utils as pb_utils

from nemotron_core.wire import PROMPT
from nemotron_engine.client import EngineClient
from nemotron_engine.triton.prompt_reader import PromptReader
from nemotron_engine.triton.prompts import Prompts
from nemotron_engine.triton.tensors import FINAL, Options, blob_tensor, parameter
from nemotron_engine.triton.watchdog import start_watchdog


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        start_watchdog()
        self._reader = PromptReader.of_text_model(args)
        self._engine = EngineClient(
            Path(parameter(args, "engine_socket")), tokenizer=self._reader.tokenizer_path
        )
        self._engine.start()

    def finalize(self) -> None:
        self._reader.close()
        self._engine.close()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()

            def begin(prompts: Prompts, _options: Options, sender: Any = sender) -> None:
                # One row for each row of the batch: Triton checks that the batch stays as it is.
                rows = prompts.answers[-1].batch_index + 1
                blobs = [msgspec.msgpack.encode(prompts), *[b""] * (rows - 1)]
                response = pb_utils.InferenceResponse([blob_tensor(PROMPT, blobs)])
                sender.send(response, flags=FINAL)

            self._reader.read(self._engine, request, sender, begin)
