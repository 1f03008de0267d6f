"""The Triton models of a reward engine: `reward`, and NeMo's `reward_model`."""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.reward import SCORED
from nemotron_core.wire import Input
from nemotron_engine.protocol import Capabilities, Chunk
from nemotron_engine.triton.answers import Outcome
from nemotron_engine.triton.prompt_reader import PromptReader
from nemotron_engine.triton.prompts import Prompts
from nemotron_engine.triton.requests import RunningRequests
from nemotron_engine.triton.running_request import RunningRequest
from nemotron_engine.triton.scored_prompt import ScoredPromptBuilder
from nemotron_engine.triton.tensors import (
    Options,
    error_response,
    parameter,
    requested_names,
    tensor,
)
from nemotron_engine.triton.watchdog import start_watchdog

Scores = NDArray[np.float32]


class RewardModel:
    """A Triton model on the socket of a reward engine, with one response for each request."""

    builder: type[ScoredPromptBuilder]
    inputs: Sequence[Input]

    def outputs(
        self, scores: Scores, prompts: Prompts, capabilities: Capabilities
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs for scores [sequences, attributes] of the engine."""
        raise NotImplementedError

    def initialize(self, args: dict[str, str]) -> None:
        """See Triton's Python backend."""
        start_watchdog()
        self._reader = PromptReader(args, self.builder, self.inputs)
        self._requests = RunningRequests(
            Path(parameter(args, "engine_socket")), self._reader.tokenizer_path
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
            capabilities = self._requests.engine.hello(0).capabilities
            running = _ScoredRequest(self, capabilities, prompts, sender, names, options)
            self._requests.start(running)

        self._reader.read(self._requests.engine, request, sender, begin)


class ConversationModel(RewardModel):
    """`reward`: the five attributes of each scored turn, and the reward of each."""

    def outputs(
        self, scores: Scores, prompts: Prompts, capabilities: Capabilities
    ) -> dict[str, NDArray[Any]]:
        """See `RewardModel`."""
        columns = [capabilities.attributes.index(name) for name in SCORED]
        rows = 1 + max(answer.batch_index for answer in prompts.answers)
        tokens = np.array([answer.num_input_tokens for answer in prompts.answers], np.int32)
        rewards = scores @ np.array(capabilities.weights, np.float32)
        return {
            "scores": scores[:, columns].reshape(rows, -1, len(columns)),
            "reward": rewards.reshape(rows, -1),
            "num_input_tokens": tokens.reshape(rows, -1),
        }


class SentenceModel(RewardModel):
    """`reward_model`: all attributes of each sentence, as NeMo's reward server gives them.

    `exceeded` is 0: that a sentence is too long is an error here, and no scores are made up.
    """

    def outputs(
        self, scores: Scores, prompts: Prompts, capabilities: Capabilities
    ) -> dict[str, NDArray[Any]]:
        """See `RewardModel`."""
        return {"rewards": scores, "exceeded": np.zeros((len(scores), 1), np.int32)}


class _ScoredRequest(RunningRequest):
    """A request whose sequences are being scored."""

    def __init__(
        self,
        model: RewardModel,
        capabilities: Capabilities,
        prompts: Prompts,
        sender: Any,
        names: Collection[str],
        options: Options,
    ) -> None:
        super().__init__(prompts, sender, names, options)
        self._model = model
        self._capabilities = capabilities
        self._scores: dict[int, list[float]] = {}

    def respond(self, chunks: Sequence[Chunk]) -> Outcome:
        """See `RunningRequest`."""
        for chunk in chunks:
            if chunk.finish_reason == "error":
                return Outcome([error_response(chunk.failure())], is_last=True)
            if chunk.finish_reason == "cancelled":
                error = NemotronError("cancelled at the server", kind=ErrorKind.INTERRUPTED)
                return Outcome([error_response(error)], is_last=True)
            self._scores[self.index_of[chunk.key]] = chunk.scores
        if len(self._scores) < len(self.index_of):
            return Outcome()
        scores = np.array([self._scores[i] for i in range(len(self._scores))], np.float32)
        outputs = self._model.outputs(scores, self.prompts, self._capabilities)
        tensors = [tensor(name, array) for name, array in outputs.items() if name in self.names]
        return Outcome([pb_utils.InferenceResponse(tensors)], is_last=True)
