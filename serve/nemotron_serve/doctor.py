"""`nemotron doctor`: whether this machine can do what a profile asks for, and what to do if not."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemotron_build.gpus import require_gpus
from nemotron_build.lanes import LANES
from nemotron_build.lanes.lane import installed_version
from nemotron_build.profile import CpuProfile, Profile, TensorRTProfile
from nemotron_core.errors import NemotronError
from nemotron_serve.hosts import MPIRUN
from nemotron_serve.ranks import SRUN, world_size
from nemotron_serve.server import choose_ports
from nemotron_serve.triton import find_triton, library_folder

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where Triton's models and NCCL share memory
SHARED_MEMORY_PER_RANK = 1 << 30
"""Bytes. NCCL takes up to about half of this for each rank, Triton's models tens of megabytes."""
SHARED_MEMORY_ON_CPU = 64 << 20


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, what was found, and whether it will do."""

    what: str
    text: str
    ok: bool


def examine(profile: Profile) -> list[Finding]:
    """All checks of a profile on this machine."""
    return [_finding(what, check, profile) for what, check in CHECKS.items()]


def _finding(what: str, check: Callable[[Profile], str], profile: Profile) -> Finding:
    try:
        return Finding(what, check(profile), ok=True)
    except NemotronError as error:
        return Finding(what, str(error), ok=False)
    except ModuleNotFoundError as error:
        return Finding(what, f"{error.name} is not installed", ok=False)


def _python(profile: Profile) -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if isinstance(profile, CpuProfile):  # the containers' Triton brings its own
        version += f", shared library in {library_folder()}"
    return version


def _libraries(profile: Profile) -> str:
    lane = LANES[profile.lane]
    lane.check_versions()
    return ", ".join(f"{name} {installed_version(name)}" for name in lane.libraries)


def _triton(profile: Profile) -> str:
    with tempfile.TemporaryDirectory() as folder:
        triton = find_triton(profile, Path(folder))
        wanted = ["python"] + (["tensorrtllm"] if isinstance(profile, TensorRTProfile) else [])
        for name in wanted:
            if not (triton.backends / name).is_dir():
                raise NemotronError(
                    f"Triton has no backend {name}",
                    where=triton.backends,
                    remedy="use the lane's container",
                )
        return str(triton.program)


def _gpus(profile: Profile) -> str:
    if isinstance(profile, CpuProfile):
        return "none needed"
    count = profile.split.gpus_per_node
    return f"{count} × {require_gpus(profile.gpu, count)}"


def _launcher(profile: Profile) -> str:
    if world_size(profile) == 1:
        return "none needed"
    assert isinstance(profile, TensorRTProfile)
    wanted = SRUN if profile.split.nodes > 1 else MPIRUN
    if (found := shutil.which(wanted)) is None:
        raise NemotronError(
            f"no {wanted} on PATH", remedy="install it, or start the ranks with another launcher"
        )
    return found


def _shared_memory(profile: Profile) -> str:
    wanted = SHARED_MEMORY_ON_CPU
    if not isinstance(profile, CpuProfile):
        wanted = SHARED_MEMORY_PER_RANK * profile.split.gpus_per_node
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < wanted:
        raise NemotronError(
            f"{free >> 20} MiB are free, {wanted >> 20} are needed",
            where=SHARED_MEMORY,
            remedy="enlarge it (docker --shm-size, an emptyDir with medium Memory)",
        )
    return f"{free >> 20} MiB free"


def _ports(profile: Profile) -> str:
    choose_ports(profile)
    return ", ".join(
        f"{name} {port}" for name, port in profile.ports.model_dump(exclude_none=True).items()
    )


CHECKS: dict[str, Callable[[Profile], str]] = {
    "Python": _python,
    "libraries": _libraries,
    "Triton": _triton,
    "GPUs": _gpus,
    "launcher": _launcher,
    "shared memory": _shared_memory,
    "ports": _ports,
}
