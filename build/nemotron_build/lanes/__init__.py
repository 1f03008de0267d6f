"""The ways to run the model, each found by the name of its lane."""

from __future__ import annotations

from nemotron_build.lanes.cpu import CpuLane
from nemotron_build.lanes.lane import Lane
from nemotron_build.lanes.pytorch import PyTorchLane
from nemotron_build.lanes.tensorrt import TensorRTLane
from nemotron_build.lanes.vllm import VllmLane
from nemotron_build.profile import Profile

LANES: dict[str, Lane] = {
    "cpu": CpuLane(),
    "tensorrt": TensorRTLane(),
    "pytorch": PyTorchLane(),
    "vllm": VllmLane(),
}


def lane_of(profile: Profile) -> Lane:
    """Return the lane that a profile names."""
    return LANES[profile.lane]
