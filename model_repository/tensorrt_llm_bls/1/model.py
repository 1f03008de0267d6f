"""The model `tensorrt_llm_bls`: the ensemble's answers in one step, streamed.

Its name is that of the classic repository's model. It makes no requests inside Triton.
"""

from __future__ import annotations

from nemotron_engine.triton.text_model import TextModel


class TritonPythonModel(TextModel):
    decoupled = True
