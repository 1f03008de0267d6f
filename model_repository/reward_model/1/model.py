"""The model `reward_model`: the scores of raw texts, for clients of NeMo's reward server."""

from __future__ import annotations

from nemotron_core.wire import SENTENCE_INPUTS
from nemotron_engine.triton.reward_model import SentenceModel
from nemotron_engine.triton.scored_prompt import SentenceBuilder


class TritonPythonModel(SentenceModel):
    builder = SentenceBuilder
    inputs = SENTENCE_INPUTS
