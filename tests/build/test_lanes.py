"""What the lanes return as data, and that no other module asks which lane it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nemotron_build.lanes import LANES, lane_of
from nemotron_build.profile import load_profile, shipped_profiles

ROOT = Path(__file__).parents[2]
LANE_QUESTION = re.compile(
    r"isinstance\([^)]*Profile|\blane (==|!=|in) |case (Cpu|TensorRT|PyTorch|Vllm)Profile"
)
COMPARES_TWO_LANES = "profile.lane != record.lane"
SMALL = ("cpu", "laptop", "laptop-gpu", "one-gpu", "one-gpu-fp8")
"""Profiles for machines without an image of Triton."""
KNOWN_LANE = "lane not in LANES"


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_deployment_is_consistent(name: str) -> None:
    deployment = lane_of(load_profile(name)).deployment(load_profile(name))
    assert (deployment.gpu is None) == (deployment.gpus_per_node == 0)
    assert (deployment.triton is None) == (name in SMALL)  # not in an image
    assert deployment.shared_memory >= deployment.gpus_per_node << 30


@pytest.mark.parametrize(
    ("name", "processes", "nodes", "gpus"),
    [
        ("cpu", 1, 1, 0),
        ("h100-fp8-tp8", 8, 1, 8),
        ("h100-bf16-tp8-pp2", 16, 2, 8),
        ("h100-bf16-tp8-pp2-pytorch", 16, 2, 8),
        ("a100-bf16-tp8-pp2-vllm", 2, 2, 8),
    ],
)
def test_processes_and_nodes(name: str, processes: int, nodes: int, gpus: int) -> None:
    deployment = lane_of(load_profile(name)).deployment(load_profile(name))
    assert (deployment.processes, deployment.nodes) == (processes, nodes)
    assert deployment.gpus_per_node == gpus


def test_every_profile_names_a_lane() -> None:
    assert {load_profile(name).lane for name in shipped_profiles()} == set(LANES)


@pytest.mark.parametrize(
    "question",
    ["if isinstance(profile, CpuProfile):", 'if profile.lane == "cpu":', "case TensorRTProfile():"],
)
def test_a_question_about_the_lane_is_recognized(question: str) -> None:
    assert LANE_QUESTION.search(question)


def test_nothing_outside_asks_which_lane_it_is() -> None:
    rooms = (ROOT / "build" / "nemotron_build", ROOT / "serve" / "nemotron_serve")
    questions = [
        f"{path.name}: {line.strip()}"
        for room in rooms
        for path in room.rglob("*.py")
        for line in path.read_text().splitlines()
        if LANE_QUESTION.search(line.replace(COMPARES_TWO_LANES, "").replace(KNOWN_LANE, ""))
    ]
    assert questions == []
