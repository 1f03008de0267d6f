"""The adapter of the vLLM lane for reward models: vLLM's pooling in place of its sampling.

vLLM applies the head's rows to the last token's hidden state. The head's bias is added here,
because `NemotronForSequenceClassification` has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_core.reward import RewardHead
from nemotron_engine.adapters.reward import reward_capabilities, score_chunk
from nemotron_engine.adapters.vllm import VllmAdapter
from nemotron_engine.protocol import Chunk, Request


class VllmRewardAdapter(VllmAdapter):
    """See `Adapter`. vLLM computes all requests together, so it is stepped."""

    def __init__(self, folder: Path) -> None:
        head = RewardHead.read(folder)
        super().__init__(folder)
        self.loras = None
        self._bias = head.bias
        self.capabilities = reward_capabilities(head)

    def _params(self, request: Request) -> Any:
        # Without an activation: vLLM would apply a softmax to the scores.
        return self._api.PoolingParams(task="classify", use_activation=False)

    def _chunk(self, request: Request, output: Any) -> Chunk:
        scores = output.outputs.data.float().numpy() + self._bias
        return score_chunk(request.key, scores.tolist())
