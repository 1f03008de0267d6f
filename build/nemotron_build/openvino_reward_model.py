"""A reward model as an OpenVINO graph: one pass over whole sequences, up to the head.

The head itself is not in the graph: nine rows in F32 cost nothing beside a decoder, and the plug-in
would round them to the type in which it computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nemotron_build.openvino_model import DecoderGraph, Node, Precision, parameter
from nemotron_build.weights import Weights
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_core.openvino import openvino, opset13


def build_reward_model(
    checkpoint: Checkpoint, precision: Precision, weights: Weights = "bf16"
) -> Any:
    """Return an `openvino.Model` of a reward model's checkpoint.

    Inputs: input_ids [B, T] and last [B], the position of each sequence's last token, i64. Output:
    hidden [B, hidden size] F32, the input of the head at that token. See `build_model` for
    `precision` and `weights`.
    """
    return _RewardGraph(checkpoint, precision, weights).model()


class _RewardGraph(DecoderGraph):
    def model(self) -> Any:
        ids = parameter("input_ids", [-1, -1], openvino.Type.i64)
        last = parameter("last", [-1], openvino.Type.i64)
        zero, one = (opset13.constant(np.int64(value)) for value in (0, 1))
        length = opset13.gather(opset13.shape_of(ids, "i64"), one, zero)
        positions = opset13.unsqueeze(opset13.range(zero, length, one, "i64"), zero)
        hidden = self.hidden_states(ids, positions)
        scored = opset13.gather(hidden, last, one, batch_dims=1)
        result = opset13.result(scored)
        result.output(0).set_names({"hidden"})
        model = openvino.Model([result], [ids, last], "nemotron_reward")
        model.validate_nodes_and_infer_types()
        return model

    def _attend(self, query: Node, key: Node, value: Node, layer: int) -> Node:
        return opset13.scaled_dot_product_attention(
            query, self._for_every_head(key), self._for_every_head(value), causal=True
        )
