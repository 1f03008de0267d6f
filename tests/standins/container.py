"""A folder like NVIDIA's container, with stand-ins where a GPU would be.

Real in it: Triton and its Python backend. Stand-ins: `nvidia-smi`, `trtllm-build`,
`trtllm-llmapi-launch`, and the package `tensorrt_llm`.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from nemotron_serve.triton import find_triton

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Container:
    root: Path

    @property
    def triton(self) -> Path:
        return self.root / "tritonserver"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find the stand-ins."""
        path = os.environ.get("PYTHONPATH")
        return {
            "PATH": os.pathsep.join([str(self.root / "bin"), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self.root / "packages"), path])),
        }


def make_container(root: Path, *, gpu: str, gpus: int = 8, version: str) -> Container:
    """`gpu` is one line of `nvidia-smi`: name, MiB, compute capability."""
    container = Container(root)
    make_triton(container.triton)
    _script(root / "bin" / "nvidia-smi", *[f"echo '{gpu}'"] * gpus)
    _script(root / "bin" / "trtllm-build", f'exec {sys.executable} {HERE}/trtllm_build.py "$@"')
    shutil.copy(HERE / "trtllm-llmapi-launch", root / "bin")
    add_library(root / "packages", version)
    return container


def make_triton(folder: Path) -> None:
    """Lay out the Triton of the wheel nvidia-pytriton as NVIDIA's images have theirs."""
    folder.mkdir(parents=True)
    real = find_triton(None, folder)  # its backends are arranged in folder/backends
    exports = [f'export {name}="{text}"' for name, text in real.environment.items()]
    _script(folder / "bin" / "tritonserver", *exports, f'exec "{real.program}" "$@"')


def add_library(packages: Path, version: str) -> None:
    """Install the package `tensorrt_llm` into a folder of packages, as this version of it."""
    shutil.copytree(HERE / "tensorrt_llm", packages / "tensorrt_llm")
    metadata = packages / f"tensorrt_llm-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: tensorrt-llm\nVersion: {version}\n")


def _script(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)
