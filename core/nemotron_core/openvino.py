"""OpenVINO without its telemetry. Every other module imports OpenVINO from here.

Importing `openvino` reports to its vendor through the package `openvino_telemetry`, opted in by
default. So this module disables that package first: `None` in `sys.modules` makes its import fail,
and OpenVINO falls back to a silent stub of its own. This happens at import time, because a call
could be forgotten before an import of `openvino`.
"""

from __future__ import annotations

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino
import openvino_genai
from openvino import opset13

__all__ = ["openvino", "openvino_genai", "opset13"]
