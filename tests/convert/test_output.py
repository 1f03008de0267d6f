"""Outputs that cannot be made are refused before the source is opened, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.convert.nemo import NEMO, unpack

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))


def link(place: Path) -> str:
    (place / "target").mkdir()
    (place / "link").symlink_to("target")
    return "link"


def dangling_link(place: Path) -> str:
    (place / "link").symlink_to("nowhere")
    return "link"


def below_a_file(place: Path) -> str:
    (place / "file").write_text("mine")
    return "file/out"


OUTPUTS: dict[str, tuple[Callable[[Path], str], str]] = {
    "link": (link, "the output is a symbolic link"),
    "dangling link": (dangling_link, "the output is a symbolic link"),
    "here": (lambda place: ".", "the output is the folder that the command runs in"),
    "above": (lambda place: "..", "the output is the folder that the command runs in"),
    "root": (lambda place: "/", "the output is the folder that the command runs in"),
    "inside the input": (lambda place: "in/out", "the output is inside the input"),
    "the input": (lambda place: "in", "the output is inside the input"),
    "below a file": (below_a_file, "file is not a folder"),
}


def lines_of(arguments: list[str], place: Path, prefix: str = "") -> list[str]:
    """Return what the command prints on standard error when it fails."""
    command = f"{prefix} exec {NEMOTRON} convert {' '.join(arguments)}"
    run = ["unshare", "--map-root-user", "--mount", "sh", "-c", command]
    done = subprocess.run(run, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be(name: str, tmp_path: Path) -> None:
    make, message = OUTPUTS[name]
    unpack(tmp_path / "in")
    output = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    (line,) = lines_of(["in", "-o", output], tmp_path)
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mount = "mount -t tmpfs -o ro none disk;"
    (line,) = lines_of([str(NEMO), "-o", "disk/out"], tmp_path, mount)
    assert "nothing can be written in" in line
    assert "read-only" in line


def test_the_output_is_judged_first(tmp_path: Path) -> None:
    """A source that would be refused, too, is not even opened."""
    os.mkfifo(tmp_path / "model.nemo")
    (line,) = lines_of(["model.nemo", "-o", "."], tmp_path)
    assert "the folder that the command runs in" in line
