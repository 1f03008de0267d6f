"""Tensors of a Triton request as Python values, and back; used by every model of the repository."""

from __future__ import annotations

import faulthandler
import json
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_core.errors import ErrorKind, NemotronError

TRITON_POLL_SECONDS = 1.0
FINALIZE_SECONDS = 5.0
"""A model has this long to end by itself when its Triton has gone."""

KNOWN_PARAMETERS = {"id"}
"""`/generate` takes the request's id from this key, and hands it on as a parameter too."""


def end_with_triton(triton: int) -> None:
    """Wait for the end of Triton's process, and then end this one.

    A model that waits for another's answer would otherwise wait for ever.
    """
    while os.getppid() == triton:
        time.sleep(TRITON_POLL_SECONDS)
    time.sleep(FINALIZE_SECONDS)
    os._exit(1)


faulthandler.enable()  # a model's process that crashes says in Triton's log where
threading.Thread(
    target=end_with_triton, args=(os.getppid(),), name="end with Triton", daemon=True
).start()


def values(request: Any, name: str) -> list[Any] | None:
    """All elements of an input, or None if it was not sent; texts as str."""
    return elements(pb_utils.get_input_tensor_by_name(request, name))


def elements(tensor: Any) -> list[Any] | None:
    """All elements of a tensor, or None if there is none; texts as str."""
    if tensor is None:
        return None
    found: list[Any] = tensor.as_numpy().ravel().tolist()
    if found and isinstance(found[0], bytes):
        return [_text(tensor.name(), element) for element in found]
    return found


def value(request: Any, name: str, default: Any = None) -> Any:
    """The element of an input of one, or `default` if it was not sent."""
    found = values(request, name)
    if found is None:
        return default
    if len(found) != 1:
        raise NemotronError(f"expected one value, got {len(found)}", where=name)
    return found[0]


def required(request: Any, name: str) -> Any:
    """The element of an input of one that must be there.

    Triton itself only counts a request's inputs: an optional one makes up for a missing one.
    """
    found = value(request, name)
    if found is None:
        raise NemotronError(f"{name} is missing")
    return found


def refuse_parameters(request: Any) -> None:
    """NemotronError if something was sent that is no input.

    `/generate` makes a parameter of every key it does not know: a misspelt or unsupported setting
    would otherwise change nothing and tell nobody.
    """
    unknown = sorted(set(json.loads(request.parameters() or "{}")) - KNOWN_PARAMETERS)
    if unknown:
        raise NemotronError(f"there is no input {unknown[0]!r}", remedy="leave it out")


def tensor(name: str, elements: Any, dtype: Any) -> Any:
    """An output with the batch axis in front."""
    if dtype is object and isinstance(elements, Sequence):
        elements = [e.encode() if isinstance(e, str) else e for e in elements]
    return pb_utils.Tensor(name, np.array([elements], dtype))


def error_response(error: NemotronError) -> Any:
    """Return the response that tells a client of `error`, by its kind."""
    return _error(error.kind, f"{error.kind.value}{error}")


def engine_failure_text(error: NemotronError) -> str:
    """Return an engine's failure as text, for where an error response cannot go.

    The request was right, so the kind is `TIMED_OUT` or `FAILED`, whatever `error` says.
    """
    kind = ErrorKind.TIMED_OUT if error.kind is ErrorKind.TIMED_OUT else ErrorKind.FAILED
    return f"{kind.value}{error}"


def is_engine_failure(text: str) -> bool:
    """Return whether `text` is the text of an engine's failure."""
    return text.startswith((ErrorKind.TIMED_OUT.value, ErrorKind.FAILED.value))


def error_response_of_text(text: str) -> Any:
    """Return the response with the error that another model gave, of its kind, in its words."""
    kind = ErrorKind.of_text(text)
    if kind is None:
        return _error(ErrorKind.FAILED, text)
    return _error(kind, text[text.index(kind.value) :])


def shutting_down() -> Any:
    """Return the response to every new request while the running ones finish."""
    return error_response(NemotronError("ask another", kind=ErrorKind.SHUTTING_DOWN))


def parameter(args: dict[str, str], name: str) -> str:
    """A parameter of the model's configuration."""
    return str(json.loads(args["model_config"])["parameters"][name]["string_value"])


def _error(kind: ErrorKind, text: str) -> Any:
    code = getattr(pb_utils.TritonError, kind.codes.triton)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise NemotronError(f"not valid UTF-8: byte {error.start}", where=name) from error
