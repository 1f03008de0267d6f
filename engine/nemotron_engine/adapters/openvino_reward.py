"""The adapter of the CPU lane for reward models: plain inference of whole sequences, in batches.

OpenVINO GenAI's pipeline gives tokens and no hidden states. A reward needs one pass over the prompt
and nothing afterwards, so there is no KV cache either.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemotron_core.engine_settings import CpuEngineSettings
from nemotron_core.errors import NemotronError
from nemotron_core.openvino import openvino
from nemotron_core.reward import RewardHead
from nemotron_engine.adapters.openvino_properties import NOT_LOADED, properties
from nemotron_engine.adapters.reward import choose_batch, reward_capabilities, score_chunk
from nemotron_engine.mapped_file import give_back
from nemotron_engine.protocol import Chunk, Request


class OpenVinoRewardAdapter:
    """See `Adapter`. A step computes some whole sequences.

    Raises `NemotronError` if the folder is no engine of this lane, or cannot be loaded.
    """

    wake_file = None
    loras = None

    def __init__(self, folder: Path) -> None:
        self.settings = CpuEngineSettings.read(folder)
        self.library = f"openvino {openvino.__version__}"
        self._head = RewardHead.read(folder)
        self.capabilities = reward_capabilities(self._head)
        self._waiting: dict[bytes, Request] = {}
        try:
            model = openvino.Core().compile_model(
                folder / CpuEngineSettings.GRAPH_NAME, "CPU", properties(self.settings)
            )
        except RuntimeError as error:
            raise NemotronError(str(error), where=folder, remedy=NOT_LOADED) from error
        self._model: Any = model.create_infer_request()
        self._hidden_states([[0] * 2])  # packs the weights
        give_back(folder / CpuEngineSettings.WEIGHTS_NAME)

    def ask(self, request: Request) -> None:
        """See `Adapter`."""
        self._waiting[request.key] = request

    def cancel(self, key: bytes) -> None:
        """See `Adapter`."""
        self._waiting.pop(key, None)

    def collect(self) -> list[Chunk]:
        """See `Adapter`."""
        if not self._waiting:
            return []
        settings = self.settings
        batch = choose_batch(
            list(self._waiting.values()), settings.max_num_tokens, settings.max_batch_size
        )
        scores = self._head.scores(self._hidden_states([r.input_ids for r in batch]))
        for request in batch:
            del self._waiting[request.key]
        return [
            score_chunk(request.key, row)
            for request, row in zip(batch, scores.tolist(), strict=True)
        ]

    def kv_cache_usage(self) -> float | None:
        """See `Adapter`. There is no KV cache."""
        return None

    def workers(self) -> list[int]:
        """See `Adapter`. The library has threads only."""
        return []

    def close(self) -> None:
        """See `Adapter`."""

    def _hidden_states(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return the hidden state [B, hidden size] of the last token of each sequence.

        The sequences are padded at their end, where causal attention lets no token see it.
        """
        width = max(map(len, sequences))
        ids = np.zeros((len(sequences), width), np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        last = np.array([len(sequence) - 1 for sequence in sequences], np.int64)
        result = self._model.infer({"input_ids": ids, "last": last})
        hidden: NDArray[np.float32] = result["hidden"]
        return hidden
