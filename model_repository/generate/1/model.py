"""The model `generate`: the ensemble's answers as one response, for plain infer over HTTP and gRPC.

Triton refuses plain infer on a decoupled model, and an ensemble with a streaming engine is one.
"""

from __future__ import annotations

from nemotron_engine.triton.text_model import TextModel


class TritonPythonModel(TextModel):
    decoupled = False
