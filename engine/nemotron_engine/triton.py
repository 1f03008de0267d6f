"""Conversion between the tensors and errors of Triton requests and Python values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.wire import DATATYPES, Input, Lane

KNOWN_PARAMETERS = {"id"}
"""Parameters of a request that are not inputs: `/generate` passes on the request's id as one."""


def values(request: Any, name: str) -> list[Any] | None:
    """Return all elements of an input, or `None` if it was not sent. Strings become `str`."""
    return elements(pb_utils.get_input_tensor_by_name(request, name))


def elements(tensor: Any) -> list[Any] | None:
    """Return all elements of a tensor, or `None` for no tensor. Strings become `str`.

    Raises `NemotronError` if a string is not valid UTF-8.
    """
    if tensor is None:
        return None
    items: list[Any] = tensor.as_numpy().ravel().tolist()
    if items and isinstance(items[0], bytes):
        return [_text(tensor.name(), item) for item in items]
    return items


def value(request: Any, name: str, default: Any = None) -> Any:
    """Return the only element of an input, or `default` if the input was not sent.

    Raises `NemotronError` if the input does not have exactly one element.
    """
    items = values(request, name)
    if items is None:
        return default
    if len(items) != 1:
        raise NemotronError(f"expected one value, got {len(items)}", where=name)
    return items[0]


def required(request: Any, name: str) -> Any:
    """Return the only element of an input. Raises `NemotronError` if the input was not sent.

    Triton does not check this: it only counts a request's inputs, so an optional input makes up
    for a missing one.
    """
    item = value(request, name)
    if item is None:
        raise NemotronError(f"{name} is missing")
    return item


def refuse_parameters(request: Any) -> None:
    """Raise `NemotronError` if the request has a parameter that is not an input.

    `/generate` makes a parameter of every key that is not an input. A misspelt or unsupported
    setting would otherwise be ignored silently.
    """
    unknown = sorted(set(json.loads(request.parameters() or "{}")) - KNOWN_PARAMETERS)
    if unknown:
        raise NemotronError(f"there is no input {unknown[0]!r}", remedy="leave it out")


def refuse_unsupported(request: Any, inputs: Sequence[Input], lane: Lane) -> None:
    """Raise `NemotronError` if the request asks for something that the lane does not support.

    Its parameters are checked too; see `refuse_parameters`.
    """
    refuse_parameters(request)
    for entry in inputs:
        if lane not in entry.lanes and (elements := values(request, entry.name)) is not None:
            entry.refuse(lane, elements)


def tensor(name: str, elements: Any) -> Any:
    """Return the tensor `name` of the contract, with the batch axis in front of `elements`."""
    dtype = "TYPE_" + DATATYPES[name].replace("BYTES", "STRING")
    return pb_utils.Tensor(name, np.array([elements], pb_utils.triton_string_to_numpy(dtype)))


def error_response(error: NemotronError) -> Any:
    """Return the response that reports `error` to a client, by its kind."""
    return _error(error.kind, f"{error.kind.value}{error}")


def engine_failure_text(error: NemotronError) -> str:
    """Return an engine's failure as text, for where an error response cannot be sent.

    The request itself was valid, so the kind is `TIMED_OUT` or `FAILED`, whatever `error` has.
    """
    kind = ErrorKind.TIMED_OUT if error.kind is ErrorKind.TIMED_OUT else ErrorKind.FAILED
    return f"{kind.value}{error}"


def is_engine_failure(text: str) -> bool:
    """Return whether `text` was made by `engine_failure_text`."""
    return text.startswith((ErrorKind.TIMED_OUT.value, ErrorKind.FAILED.value))


def error_response_of_text(text: str) -> Any:
    """Return the response that passes on another model's error, with its kind and its words."""
    kind = ErrorKind.of_text(text)
    return _error(kind, text[text.index(kind.value) :]) if kind else _error(ErrorKind.FAILED, text)


def shutting_down() -> Any:
    """Return the response to every new request while the running requests finish."""
    return error_response(NemotronError("ask another", kind=ErrorKind.SHUTTING_DOWN))


def parameter(args: dict[str, str], name: str) -> str:
    """Return a parameter of the model's configuration, from the arguments of `initialize`."""
    return str(json.loads(args["model_config"])["parameters"][name]["string_value"])


def _error(kind: ErrorKind, text: str) -> Any:
    code = getattr(pb_utils.TritonError, kind.codes.triton)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise NemotronError(f"not valid UTF-8: byte {error.start}", where=name) from error
