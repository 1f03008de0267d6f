"""The tensors between the ensemble's steps, from somebody who is no step."""

from __future__ import annotations

import pytest

from nemotron_serve.model_server import ModelServer
from tests.serve.wire import ASK, post, whole

BLOBS = {
    "empty": [],
    "short": [9, 0],
    "not MessagePack": [1, 0, 0, 0, 193],
    "no requests": [4, 0, 0, 0, 0x93, 0x90, 0x90, 0x90],
    "a name that is unknown": [5, 0, 0, 0, 0x92, 0x91, 0xC4, 0x00, 0x90],
    "a length beyond the end": [255, 255, 255, 127, 0x93],
}


@pytest.mark.parametrize("name", BLOBS)
@pytest.mark.parametrize(
    ("model", "tensor"), [("tensorrt_llm", "prompt"), ("postprocessing", "piece")]
)
def test_what_no_step_has_made_is_refused(
    server: ModelServer, model: str, tensor: str, name: str
) -> None:
    blob = BLOBS[name]
    inputs = [{"name": tensor, "shape": [1, len(blob)], "datatype": "UINT8", "data": blob}]
    path = f"/v2/models/{model}/" + ("infer" if model == "postprocessing" else "generate")
    body = {"inputs": inputs} if model == "postprocessing" else {tensor: blob}
    status, reply = post(server, path, body)
    assert status == 400, reply
    if model == "postprocessing":
        assert b"request refused: " in reply
    assert (
        "tiny Nemotron"
        in whole(server, "ensemble", messages=ASK, max_tokens=40)["text_output"][0].decode()
    )
    assert server.triton.process.poll() is None
