"""Conversion between the tensors and errors of Triton requests and Python values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.wire import DATATYPES, Input, Tensor

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
NUMPY_TYPES = {
    name: pb_utils.triton_string_to_numpy("TYPE_" + datatype.replace("BYTES", "STRING"))
    for name, datatype in DATATYPES.items()
}
"""Type of each tensor of the contract in NumPy."""
LENGTH_BYTES = 4
"""Length of the number in front of each blob, which says how many bytes it has."""


@dataclass(frozen=True)
class Options:
    """Parameters of a request that are no inputs."""

    seconds: float | None = None
    """Time limit of the request."""
    chunk_tokens: int | None = None
    """1 asks for single tokens in a stream, as fast as the model can send them."""
    heartbeat: bool = False
    """Whether to send empty pieces before the first real one, so that Triton's HTTP server notices
    when the client disconnects."""
    priority: int = 0

    @classmethod
    def of_request(cls, request: Any) -> Options:
        """Return a request's options.

        `/generate` makes a parameter of every key that is not an input. A misspelt or unsupported
        setting would be ignored silently, so `NemotronError` is raised if a parameter is unknown.
        """
        try:
            parameters = json.loads(request.parameters() or "{}")
        except UnicodeDecodeError as error:
            raise NemotronError(f"a parameter is not valid UTF-8: byte {error.start}") from error
        parameters.pop("id", None)  # `/generate` passes on the request's id
        microseconds = parameters.pop("timeout", 0) or request.timeout()
        chunk_tokens = parameters.pop("chunk_tokens", None)
        heartbeat = parameters.pop("heartbeat", False)
        priority = parameters.pop("priority", 0)
        if parameters:
            raise NemotronError(f"there is no input {min(parameters)!r}", remedy="leave it out")
        for name, number in (("timeout", microseconds), ("priority", priority)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise NemotronError(f"{name} is {number!r}", remedy="use a whole number from 0 on")
        if chunk_tokens not in (None, 1):
            raise NemotronError(f"chunk_tokens is {chunk_tokens!r}", remedy="use 1")
        return cls(microseconds / 1e6 or None, chunk_tokens, heartbeat is True, priority)


class Inputs:
    """The inputs of one request, whose batch has `len(self)` rows.

    The values are copies, because Triton reuses a request's memory when `execute` returns. Raises
    `NemotronError` if an input asks for something that an engine with `features` does not have.
    """

    def __init__(self, request: Any, contract: Sequence[Input], features: Sequence[str]) -> None:
        self._rows: dict[str, list[Any]] = {}
        for tensor in request.inputs():
            array = tensor.as_numpy()
            self._rows[tensor.name()] = array.reshape(array.shape[0], -1).tolist()
        for entry in contract:
            if (not entry.is_supported or entry.feature) and entry.name in self._rows:
                for row in range(len(self._rows[entry.name])):
                    entry.check(self.values(row, entry.name) or (), features)

    def __len__(self) -> int:
        return max(map(len, self._rows.values()), default=1)

    def values(self, row: int, name: str) -> list[Any] | None:
        """Return all elements of an input, or `None` if it was not sent. Strings become `str`.

        Raises `NemotronError` if a string is not valid UTF-8.
        """
        rows = self._rows.get(name)
        if rows is None:
            return None
        items: list[Any] = rows[row] if row < len(rows) else []
        if items and isinstance(items[0], bytes):
            return [_text(name, item) for item in items]
        return items

    def value(self, row: int, name: str, default: Any = None) -> Any:
        """Return the only element of an input, or `default` if the input was not sent.

        Raises `NemotronError` if the input does not have exactly one element.
        """
        items = self.values(row, name)
        if items is None:
            return default
        if len(items) != 1:
            raise NemotronError(f"expected one value, got {len(items)}", where=name)
        return items[0]

    def required(self, row: int, name: str) -> Any:
        """Return the only element of an input. Raises `NemotronError` if it was not sent.

        Triton does not check this: it only counts a request's inputs, so an optional input makes up
        for a missing one.
        """
        item = self.value(row, name)
        if item is None:
            raise NemotronError(f"{name} is missing")
        return item


def id_of(request: Any) -> str:
    """Return the client's id of a request, or "". Raises `NemotronError` if it is not UTF-8."""
    try:
        return str(request.request_id())
    except UnicodeDecodeError as error:
        raise NemotronError(f"the id is not valid UTF-8: byte {error.start}") from error


def tensor(name: str, elements: Any) -> Any:
    """Return the tensor `name` of the contract; the shape is that of `elements`."""
    return pb_utils.Tensor(name, np.array(elements, NUMPY_TYPES[name]))


def blob_tensor(entry: Tensor, blobs: Sequence[bytes]) -> Any:
    """Return bytes as rows of a UINT8 tensor [len(blobs), longest blob + 4], for another model."""
    rows = np.zeros((len(blobs), LENGTH_BYTES + max(map(len, blobs))), np.uint8)
    for row, blob in zip(rows, blobs, strict=True):
        row[: LENGTH_BYTES + len(blob)] = np.frombuffer(
            len(blob).to_bytes(LENGTH_BYTES, "little") + blob, np.uint8
        )
    return pb_utils.Tensor(entry.name, rows)


def read_blobs(request: Any, entry: Tensor) -> list[bytes] | None:
    """Return what `blob_tensor` was made of, or `None` if the request does not have the tensor."""
    sent = pb_utils.get_input_tensor_by_name(request, entry.name)
    if sent is None:
        return None
    rows = [row.tobytes() for row in sent.as_numpy()]
    return [
        row[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(row[:LENGTH_BYTES], "little")]
        for row in rows
    ]


def requested_names(request: Any) -> frozenset[str]:
    """Return the names of the outputs that a client asked for; over HTTP those are all."""
    return frozenset(request.requested_output_names())


def error_response(error: NemotronError) -> Any:
    """Return the response that reports `error` to a client, by its kind."""
    code = getattr(pb_utils.TritonError, error.kind.codes.triton)
    text = f"{error.kind.value}{error}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))


def parameter(args: dict[str, str], name: str) -> str:
    """Return a parameter of the model's configuration, from the arguments of `initialize`."""
    return str(json.loads(args["model_config"])["parameters"][name]["string_value"])


def cancelled() -> NemotronError:
    """Return the error that ends a request whose client cancelled it."""
    return NemotronError("the client cancelled the request", kind=ErrorKind.INTERRUPTED)


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise NemotronError(f"not valid UTF-8: byte {error.start}", where=name) from error
