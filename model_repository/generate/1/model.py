"""The model `generate`: the ensemble's answer as one response, for plain infer over HTTP and gRPC.

Triton refuses plain infer on a decoupled model, and an ensemble with a streaming engine is one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils

from nemotron_core.errors import NemotronError
from nemotron_engine.inner_request import release_all, responses
from nemotron_engine.triton import (
    error_response,
    error_response_of_text,
    parameter,
    refuse_parameters,
    value,
)
from nemotron_engine.watchdog import start_watchdog

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        start_watchdog()
        # One thread waits for each answer. The ensemble refuses more requests than `max_requests`.
        self._pool = ThreadPoolExecutor(int(parameter(args, "max_requests")))

    def finalize(self) -> None:
        self._pool.shutdown()
        release_all()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                refuse_parameters(request)
                if value(request, "stream", default=False):
                    raise NemotronError(
                        "this model answers with one response",
                        where="stream",
                        remedy="send the request to the model ensemble",
                    )
                self._pool.submit(_answer, _inner(request), sender)
            except NemotronError as error:
                sender.send(error_response(error), flags=FINAL)


def _inner(request: Any) -> Any:
    return pb_utils.InferenceRequest(
        model_name="ensemble",
        request_id=request.request_id(),
        requested_output_names=list(request.requested_output_names()),
        # Copies, because Triton reuses the memory of a request's inputs when `execute` returns.
        inputs=[pb_utils.Tensor(i.name(), i.as_numpy().copy()) for i in request.inputs()],
    )


def _answer(inner: Any, sender: Any) -> None:
    answer = error_response_of_text("the ensemble sent no answer")
    try:
        for response in responses(inner):
            if response.has_error():
                answer = error_response_of_text(response.error().message())
            elif response.output_tensors():
                answer = pb_utils.InferenceResponse(response.output_tensors())
    except pb_utils.TritonModelException as error:
        answer = error_response_of_text(str(error))
    sender.send(answer, flags=FINAL)
