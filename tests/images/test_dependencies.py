"""Our packages beside those of each lane's library: they can be installed together.

The images themselves could not be pulled, so what they hold is taken from the library's own
requirements, in `constraints/`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSTRAINTS = Path(__file__).with_name("constraints")
DOCKER = ROOT / "build" / "docker"
UV = Path(sys.executable).with_name("uv")
IMAGES = [
    ("tensorrt", "tensorrt_llm-1.2"),
    ("pytorch", "tensorrt_llm-1.2"),
    ("pytorch", "tensorrt_llm-1.3"),
    ("triton", None),
    ("vllm", None),
]
"""Dockerfiles, and the constraints of the library in their base image, if it has one."""


def resolve(extras: list[str], constraints: str | None) -> subprocess.CompletedProcess[str]:
    """Resolve extras of this project together with the requirements of a library."""
    options = [part for extra in extras for part in ("--extra", extra)]
    command = [
        *(str(UV), "pip", "compile", "pyproject.toml"),
        *("--python-version", "3.12", "--python-platform", "linux", "--quiet", "--no-header"),
        "--no-annotate",
    ]
    if constraints is not None:
        command.append(str(CONSTRAINTS / f"{constraints}.txt"))
    return subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )


def extras_of(dockerfile: str) -> list[str]:
    """Return the extras that a Dockerfile installs."""
    text = (DOCKER / f"{dockerfile}.Dockerfile").read_text()
    extras = re.findall(r"--extra[ =]([a-z]+)", text)
    assert extras
    return extras


@pytest.mark.parametrize(("dockerfile", "constraints"), IMAGES)
def test_the_image_can_be_built(dockerfile: str, constraints: str | None) -> None:
    extras = extras_of(dockerfile)
    assert "server" in extras
    done = resolve(extras, constraints)
    assert done.returncode == 0, done.stderr
    for package in ("msgspec", "tritonclient", "starlette"):
        assert re.search(rf"^{package}==", done.stdout, re.MULTILINE)


def test_the_engine_fits_beside_vllm() -> None:
    done = resolve(["engine", "convert"], "vllm-0.32")
    assert done.returncode == 0, done.stderr
    assert "msgspec==" in done.stdout


def test_a_conflict_does_not_pass(tmp_path: Path) -> None:
    """The hub's newest client, beside the transformers in NVIDIA's image."""
    (tmp_path / "ours.txt").write_text("huggingface-hub>=1\n")
    command = [str(UV), "pip", "compile", "--quiet", "--python-version", "3.12"]
    files = [tmp_path / "ours.txt", CONSTRAINTS / "tensorrt_llm-1.2.txt"]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "huggingface-hub" in done.stderr


def test_every_file_of_constraints_says_where_it_comes_from() -> None:
    files = list(CONSTRAINTS.iterdir())
    assert {name for _, name in IMAGES if name} <= {path.stem for path in files}
    for path in files:
        assert re.search(r"^# Source: .*[0-9]", path.read_text(), re.MULTILINE), path.name
