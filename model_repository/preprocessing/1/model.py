"""The model `preprocessing`: prompt to tokens, with every check that needs no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from nemotron_core.errors import NemotronError
from nemotron_engine.prompt import PromptBuilder
from nemotron_engine.triton import error_response, parameter, shutting_down
from nemotron_engine.watchdog import start_watchdog


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        start_watchdog()
        self._prompts = PromptBuilder.of_model(args)
        self._drain_file = Path(parameter(args, "drain_file"))

    def execute(self, requests: list[Any]) -> list[Any]:
        if self._drain_file.exists():
            return [shutting_down() for _request in requests]
        responses = []
        for request in requests:
            try:
                prompt = self._prompts.build(request)
                responses.append(pb_utils.InferenceResponse(prompt.tensors))
            except NemotronError as error:
                responses.append(error_response(error))
        return responses
