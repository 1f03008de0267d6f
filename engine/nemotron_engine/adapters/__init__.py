"""One adapter for each library that computes, found by the name of its lane."""

from __future__ import annotations

import pkgutil
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_core.reward import HEAD_NAME
from nemotron_engine.adapters.adapter import Adapter

ADAPTERS = {
    "cpu": "nemotron_engine.adapters.openvino:OpenVinoAdapter",
    "tensorrt": "nemotron_engine.adapters.tensorrt_llm:TensorRTAdapter",
    "pytorch": "nemotron_engine.adapters.tensorrt_llm:PyTorchAdapter",
    "vllm": "nemotron_engine.adapters.vllm:VllmAdapter",
}
"""Class of each lane's adapter. It is a name, so that only the lane in use loads its library."""
REWARD_ADAPTERS = {
    "cpu": "nemotron_engine.adapters.openvino_reward:OpenVinoRewardAdapter",
    "vllm": "nemotron_engine.adapters.vllm_reward:VllmRewardAdapter",
}
"""The same for engines of a reward model."""
WORKERS = {"vllm": "nemotron_engine.adapters.vllm_engine:work"}
"""What an engine's process does on every machine but the first."""


def load_adapter(name: str, folder: Path) -> Adapter:
    """Load an engine folder with the adapter of a lane, or with `module:class`.

    Raises `NemotronError` if the folder is not an engine of this lane.
    """
    adapters = ADAPTERS
    if name in ADAPTERS and (folder / HEAD_NAME).exists():
        adapters = REWARD_ADAPTERS
        if name not in adapters:
            raise NemotronError(
                f"the lane {name} serves no reward models",
                where=folder,
                remedy=f"build for the lane {' or '.join(adapters)}",
            )
    adapter: Adapter = pkgutil.resolve_name(adapters.get(name, name))(folder)
    return adapter


def work(name: str, folder: Path, place: tuple[int, int]) -> None:
    """Compute for the engine's process on the first machine, until that ends.

    Raises `NemotronError` if the lane starts its processes in another way.
    """
    if name not in WORKERS:
        raise NemotronError(
            f"the lane {name} has one engine's process, and a launcher has started {place[1]}"
        )
    pkgutil.resolve_name(WORKERS[name])(folder, place)
