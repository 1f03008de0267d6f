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

from nemotron_core.error_kinds import FAILED, OVERLOADED, REFUSED, SHUTTING_DOWN, TIMED_OUT
from nemotron_core.errors import NemotronError
from nemotron_engine.request import EngineBroken, Overloaded, TimedOut

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


def refusal(error: NemotronError) -> Any:
    """A response that says what is wrong with the request, or that there is no room for it."""
    if isinstance(error, Overloaded):
        return _error(f"{OVERLOADED}{error}", pb_utils.TritonError.UNAVAILABLE)
    if isinstance(error, EngineBroken):
        return fault(error)
    return _error(f"{REFUSED}{error}", pb_utils.TritonError.INVALID_ARG)


def fault(error: NemotronError) -> Any:
    """A response that says what went wrong with a request that was right."""
    return told_fault(fault_text(error))


def fault_text(error: NemotronError) -> str:
    """The same as text, for where an error cannot go."""
    return f"{TIMED_OUT if isinstance(error, TimedOut) else FAILED}{error}"


def is_fault(text: str) -> bool:
    """Whether this is such a text."""
    return text.startswith((TIMED_OUT, FAILED))


def told_fault(text: str) -> Any:
    """A response of such a text."""
    timed_out = text.startswith(TIMED_OUT)
    code = pb_utils.TritonError.UNAVAILABLE if timed_out else pb_utils.TritonError.INTERNAL
    return _error(text, code)


def handed_on(text: str) -> Any:
    """A response with the error that another model gave, in its own words and of its own kind."""
    for kind, code in (
        (REFUSED, pb_utils.TritonError.INVALID_ARG),
        (OVERLOADED, pb_utils.TritonError.UNAVAILABLE),
        (SHUTTING_DOWN, pb_utils.TritonError.UNAVAILABLE),
        (TIMED_OUT, pb_utils.TritonError.UNAVAILABLE),
    ):
        if kind in text:
            return _error(text[text.index(kind) :], code)
    return _error(text, pb_utils.TritonError.INTERNAL)


def shutting_down() -> Any:
    """The answer to every new request while the running ones finish."""
    return _error(f"{SHUTTING_DOWN}ask another", pb_utils.TritonError.UNAVAILABLE)


def parameter(args: dict[str, str], name: str) -> str:
    """A parameter of the model's configuration."""
    return str(json.loads(args["model_config"])["parameters"][name]["string_value"])


def _error(text: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise NemotronError(f"not valid UTF-8: byte {error.start}", where=name) from error
