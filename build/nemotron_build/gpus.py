"""The GPUs of this machine, as its driver reports them."""

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
"""A card reports a little less than it is sold with."""


@dataclass(frozen=True)
class FoundGpu:
    name: str
    memory_mib: int
    compute_capability: tuple[int, int]

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name}, {self.memory_mib} MiB, sm_{major}{minor}"

    def mismatch(self, wanted: Gpu) -> str | None:
        """Why this is not the GPU that a profile is for; None if it is."""
        if self.compute_capability != wanted.compute_capability:
            return f"its compute capability is {'.'.join(map(str, self.compute_capability))}"
        if self.memory_mib < wanted.memory_gib * MIB_PER_GIB * MEMORY_SLACK:
            return f"it has {self.memory_mib} MiB"
        if wanted.name.lower() not in self.name.lower():
            return f"it is a {self.name}"
        return None


def find_gpus() -> list[FoundGpu]:
    """All GPUs; NemotronError if there is no driver to ask, or none that it sees."""
    tool = shutil.which(TOOL)
    if tool is None:
        raise NemotronError(f"no {TOOL}: this machine has no NVIDIA driver", remedy=_REMEDY)
    done = subprocess.run(
        [tool, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NemotronError(f"{TOOL} failed: {done.stdout} {done.stderr}", remedy=_REMEDY)
    found = [_parse(line) for line in done.stdout.splitlines() if line.strip()]
    if not found:
        raise NemotronError(f"{TOOL} sees no GPU", remedy=_REMEDY)
    return found


def require_gpus(wanted: Gpu, count: int) -> FoundGpu:
    """One of at least `count` GPUs that are what the profile is for; NemotronError otherwise."""
    gpus = find_gpus()
    for number, gpu in enumerate(gpus[:count]):
        if (why := gpu.mismatch(wanted)) is not None:
            raise NemotronError(
                f"GPU {number} is not the profile's {wanted.name} with {wanted.memory_gib} GiB: "
                f"{why}",
                remedy="use another profile or another machine",
            )
    if len(gpus) < count:
        raise NemotronError(
            f"this machine has {len(gpus)} GPUs, the profile needs {count} on each node",
            remedy="use another profile or another machine",
        )
    return gpus[0]


_REMEDY = "run this on a GPU node, or use the profile cpu; --dry-run shows what would happen"


def _parse(line: str) -> FoundGpu:
    try:
        name, memory, capability = (part.strip() for part in line.split(","))
        major, minor = map(int, capability.split("."))
        return FoundGpu(name, int(memory), (major, minor))
    except ValueError as error:
        raise NemotronError(f"{TOOL} answers with what is no GPU: {line!r}") from error
