"""A stand-in for a Triton server that fails: it does what its script says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc


class Scripted(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A stand-in server that answers each call by the next steps of its script.

    A number is a pause in seconds, a text is a piece, an exception is an error message in the
    stream, and a status is a failed call.
    """

    def __init__(self, *script: list[float | str | Exception | grpc.StatusCode]) -> None:
        self.script = list(script)
        self.calls = self.max_running = self._running = 0
        self._lock = threading.Lock()
        self.metadata: list[dict[str, str]] = []
        self.requests: list[Any] = []

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        request = next(requests)
        if any(tensor.name == "stop" for tensor in request.inputs):
            return
        with self._lock:
            self.calls += 1
            self._running += 1
            self.max_running = max(self.max_running, self._running)
            steps = self.script[min(self.calls, len(self.script)) - 1]
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        for step in steps:
            if isinstance(step, float):
                time.sleep(step)
            elif isinstance(step, grpc.StatusCode):
                context.abort(step, "as scripted")
            elif isinstance(step, Exception):
                yield service_pb2.ModelStreamInferResponse(error_message=str(step))
            else:
                response = service_pb2.ModelInferResponse(model_name=request.model_name)
                data = step.encode()
                response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
                response.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
                yield service_pb2.ModelStreamInferResponse(infer_response=response)
        with self._lock:
            self._running -= 1


class Serving:
    """A stand-in behind a real gRPC server."""

    def __init__(
        self,
        standin: Scripted,
        credentials: grpc.ServerCredentials | None = None,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._server = grpc.server(ThreadPoolExecutor(8), options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(standin, self._server)
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.url = f"127.0.0.1:{port}"

    def __enter__(self) -> str:
        self._server.start()
        return self.url

    def __exit__(self, *_error: object) -> None:
        self._server.stop(None).wait()
