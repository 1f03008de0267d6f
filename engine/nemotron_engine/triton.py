"""Tensors of a Triton request as Python values, and back; used by every model of the repository."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from nemotron_convert.errors import NemotronError
from nemotron_engine.error_kinds import FAILED, REFUSED, SHUTTING_DOWN

KNOWN_PARAMETERS = {"id"}
"""`/generate` takes the request's id from this key, and hands it on as a parameter too."""


def values(request: Any, name: str) -> list[Any] | None:
    """All elements of an input, or None if it was not sent; texts as str."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    elements: list[Any] = tensor.as_numpy().ravel().tolist()
    if elements and isinstance(elements[0], bytes):
        return [_text(name, element) for element in elements]
    return elements


def value(request: Any, name: str, default: Any = None) -> Any:
    """The element of an input of one, or `default` if it was not sent."""
    elements = values(request, name)
    if elements is None:
        return default
    if len(elements) != 1:
        raise NemotronError(f"expected one value, got {len(elements)}", where=name)
    return elements[0]


def required(request: Any, name: str) -> Any:
    """The element of an input of one that must be there.

    Triton itself only counts a request's inputs: an optional one makes up for a missing one.
    """
    element = value(request, name)
    if element is None:
        raise NemotronError(f"{name} is missing")
    return element


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
    """A response that says what is wrong with the request."""
    return _error(f"{REFUSED}{error}", pb_utils.TritonError.INVALID_ARG)


def fault(error: NemotronError) -> Any:
    """A response that says what went wrong with a request that was right."""
    return _error(f"{FAILED}{error}", pb_utils.TritonError.INTERNAL)


def shutting_down() -> Any:
    """The answer to every new request while the running ones finish."""
    return _error(f"{SHUTTING_DOWN}ask another", pb_utils.TritonError.UNAVAILABLE)


class Gauge:
    """A number on Triton's metrics page. Each call crosses processes: not for every token."""

    def __init__(self, name: str, description: str) -> None:
        self._family = pb_utils.MetricFamily(
            name=name, description=description, kind=pb_utils.MetricFamily.GAUGE
        )
        self._metric = self._family.Metric(labels={})
        self._value = 0.0

    def set(self, value: float) -> None:
        if value != self._value:
            self._value = value
            self._metric.set(value)


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
