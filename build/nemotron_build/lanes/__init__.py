"""The ways to run the model: each knows how its engine is built and how Triton is to load it."""

from __future__ import annotations

from nemotron_build.lanes.cpu import CpuLane
from nemotron_build.lanes.lane import BuildPlan, BuiltEngine, Lane, ModelSettings
from nemotron_build.lanes.pytorch import PyTorchLane
from nemotron_build.lanes.tensorrt import TensorRTLane

LANES: dict[str, Lane] = {"cpu": CpuLane(), "tensorrt": TensorRTLane(), "pytorch": PyTorchLane()}

__all__ = ["LANES", "BuildPlan", "BuiltEngine", "Lane", "ModelSettings"]
