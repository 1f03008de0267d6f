"""The GPUs of this machine, as the driver reports them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from nemotron_build.profile import Gpu
from nemotron_core.errors import NemotronError

TOOL = "nvidia-smi"
QUERY = "name,memory.total,compute_cap"
MIB_PER_GIB = 1024
MEMORY_SLACK = 0.95
"""Fraction of the advertised memory that must be there: a GPU reports a little less than all."""


@dataclass(frozen=True)
class InstalledGpu:
    """A GPU of this machine."""

    name: str
    memory_mib: int
    compute_capability: tuple[int, int]

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name}, {self.memory_mib} MiB, sm_{major}{minor}"

    def mismatch(self, required: Gpu) -> str | None:
        """Return why this is not the GPU that a profile requires, or `None` if it is."""
        is_newer = required.or_newer and self.compute_capability > required.compute_capability
        if self.compute_capability != required.compute_capability and not is_newer:
            return f"its compute capability is {'.'.join(map(str, self.compute_capability))}"
        if self.memory_mib < required.memory_gib * MIB_PER_GIB * MEMORY_SLACK:
            return f"it has {self.memory_mib} MiB"
        if required.name.lower() not in self.name.lower():
            return f"it is a {self.name}"
        return None


def find_gpus() -> list[InstalledGpu]:
    """Return all GPUs. Raises `NemotronError` if there is no driver or if it reports no GPU."""
    tool = shutil.which(TOOL)
    if tool is None:
        raise NemotronError(f"no {TOOL}: this machine has no NVIDIA driver", remedy=_REMEDY)
    process = subprocess.run(
        [tool, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise NemotronError(f"{TOOL} failed: {process.stdout} {process.stderr}", remedy=_REMEDY)
    gpus = [_parse(line) for line in process.stdout.splitlines() if line.strip()]
    if not gpus:
        raise NemotronError(f"{TOOL} sees no GPU", remedy=_REMEDY)
    return gpus


def require_gpus(required: Gpu, count: int) -> InstalledGpu:
    """Return the first of `count` GPUs that a profile requires.

    Raises `NemotronError` if this machine has fewer, or if one of them is another GPU.
    """
    gpus = find_gpus()
    for number, gpu in enumerate(gpus[:count]):
        if (reason := gpu.mismatch(required)) is not None:
            profile_gpu = f"{required.name} with {required.memory_gib} GiB"
            raise NemotronError(
                f"GPU {number} is not the profile's {profile_gpu}: {reason}",
                remedy="use another profile or another machine",
            )
    if len(gpus) < count:
        raise NemotronError(
            f"this machine has {len(gpus)} GPUs, the profile needs {count} on each node",
            remedy="use another profile or another machine",
        )
    return gpus[0]


_REMEDY = "run this on a GPU node, or use the profile cpu; --dry-run shows what would happen"


def _parse(line: str) -> InstalledGpu:
    try:
        name, memory, capability = (part.strip() for part in line.split(","))
        major, minor = map(int, capability.split("."))
        return InstalledGpu(name, int(memory), (major, minor))
    except ValueError as error:
        raise NemotronError(f"{TOOL} prints a line that describes no GPU: {line!r}") from error
