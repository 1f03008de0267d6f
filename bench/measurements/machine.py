"""The machine that measurements run on: its description, its page cache, the measured commit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from nemotron_bench.machine import machine as describe_cpu

ROOT = Path(__file__).parents[2]
NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
"""The command `nemotron` of this environment."""
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


def describe_machine() -> dict[str, Any]:
    """Return the CPU, cores, memory, system and Python, and the GPUs' names if there are any."""
    machine: dict[str, Any] = dict(describe_cpu())
    if shutil.which(NVIDIA_SMI[0]):
        gpus = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=False)
        if gpus.returncode == 0 and gpus.stdout.strip():
            machine["gpus"] = gpus.stdout.strip().splitlines()
    return machine


def current_commit() -> str | None:
    """Return the commit of this working tree, with `-dirty` if it has changes.

    Returns `None` outside a git repository.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return process.stdout.strip() or None


def drop_page_cache() -> bool:
    """Write back and drop the page cache. Returns whether the system allows it (root on Linux)."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True
