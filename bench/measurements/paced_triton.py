"""A stand-in for Triton that sends tokens at a fixed pace on each stream, as a large model does.

`python -m bench.measurements.paced_triton` prints its gRPC port and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import time

import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

PACE = 30.0
"""Tokens per second on each stream."""


class PacedTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with `max_tokens` tokens, one every 1 / PACE seconds."""

    async def ModelStreamInfer(self, requests, _context):  # noqa: N802
        async for request in requests:
            names = [request_input.name for request_input in request.inputs]
            raw = request.raw_input_contents[names.index("max_tokens")]
            tokens = int.from_bytes(raw, "little")
            start = time.monotonic()
            for number in range(1, tokens + 1):
                await asyncio.sleep(start + number / PACE - time.monotonic())
                yield service_pb2.ModelStreamInferResponse(
                    infer_response=token_response(number, tokens)
                )


def token_response(number: int, tokens: int) -> service_pb2.ModelInferResponse:
    """Return the response with token `number` of `tokens`, with all outputs of the ensemble."""
    response = service_pb2.ModelInferResponse(model_name="ensemble")
    reason = b"length" if number == tokens else b""
    for name, datatype, raw in (
        ("text_output", "BYTES", b"\x05\0\0\0 word"),
        ("output_token_ids", "INT32", number.to_bytes(4, "little")),
        ("finish_reason", "BYTES", len(reason).to_bytes(4, "little") + reason),
        ("stop_reason", "BYTES", b"\0\0\0\0"),
        ("num_input_tokens", "INT32", b"\x05\0\0\0"),
        ("num_output_tokens", "INT32", number.to_bytes(4, "little")),
        ("sequence_index", "INT32", b"\0\0\0\0"),
    ):
        response.outputs.add(name=name, datatype=datatype, shape=[1, 1])
        response.raw_output_contents.append(raw)
    return response


async def serve() -> None:
    """Serve on a free port of the loopback interface."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(PacedTriton(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
