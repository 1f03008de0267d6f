"""The model `reward`: the scores of conversations, by a reward model."""

from __future__ import annotations

from nemotron_core.wire import REWARD_INPUTS
from nemotron_engine.triton.reward_model import ConversationModel
from nemotron_engine.triton.scored_prompt import ConversationBuilder


class TritonPythonModel(ConversationModel):
    builder = ConversationBuilder
    inputs = REWARD_INPUTS
