"""The ensemble for clients that want one response: plain infer over HTTP and gRPC.

Triton refuses plain infer on a decoupled model, and an ensemble around a streaming engine is one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._pool = ThreadPoolExecutor(
            int(args["max_batch_size"]) if "max_batch_size" in args else 64
        )

    def finalize(self) -> None:
        self._pool.shutdown()

    def execute(self, requests: list[Any]) -> list[Any]:
        return list(self._pool.map(_ask, requests))


def _ask(request: Any) -> Any:
    inner = pb_utils.InferenceRequest(
        model_name="ensemble",
        request_id=request.request_id(),
        requested_output_names=list(request.requested_output_names()),
        inputs=request.inputs(),
    )
    answer = None
    for response in inner.exec(decoupled=True):
        if response.has_error():
            answer = pb_utils.InferenceResponse(error=response.error())
        elif response.output_tensors():
            answer = pb_utils.InferenceResponse(response.output_tensors())
    if answer is None:
        error = pb_utils.TritonError("the ensemble sent no answer", pb_utils.TritonError.INTERNAL)
        answer = pb_utils.InferenceResponse(error=error)
    return answer
