"""One adapter for each library that computes, found by the name of its lane."""

from __future__ import annotations

import pkgutil
from pathlib import Path

from nemotron_engine.adapters.adapter import Adapter

ADAPTERS = {
    "cpu": "nemotron_engine.adapters.openvino:OpenVinoAdapter",
    "tensorrt": "nemotron_engine.adapters.tensorrt_llm:TensorRTAdapter",
    "pytorch": "nemotron_engine.adapters.tensorrt_llm:PyTorchAdapter",
}
"""Class of each lane's adapter. It is a name, so that only the lane in use loads its library."""


def load_adapter(name: str, folder: Path) -> Adapter:
    """Load an engine folder with the adapter of a lane, or with `module:class`.

    Raises `NemotronError` if the folder is not an engine of this lane.
    """
    adapter: Adapter = pkgutil.resolve_name(ADAPTERS.get(name, name))(folder)
    return adapter
