"""OpenVINO, imported so that it phones nobody. Every other module takes it from here."""

from __future__ import annotations

import sys

# `import openvino` reports to its vendor through this package, opted in by default. A None here
# makes its import fail, and OpenVINO then falls back to its own silent stub.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino
import openvino_genai
from openvino import opset13

__all__ = ["openvino", "openvino_genai", "opset13"]
