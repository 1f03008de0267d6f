"""The checks of `nemotron doctor`: whether this machine can serve a profile, or what to do."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemotron_build.gpus import require_gpus
from nemotron_build.lanes import lane_of
from nemotron_build.lanes.deployment import Deployment
from nemotron_build.profile import Profile
from nemotron_core.errors import NemotronError
from nemotron_serve.exposure import exposure, triton_version
from nemotron_serve.hosts import MPIRUN
from nemotron_serve.ports import choose_ports
from nemotron_serve.ranks import SRUN
from nemotron_serve.triton import find_triton, library_folder

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where Triton's models and NCCL share memory
BACKEND = "python"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    """Name of the check."""
    text: str
    """Result for the user: what this machine has, or what is wrong and what to do."""
    ok: bool


def examine(profile: Profile) -> list[Finding]:
    """Run all checks of a profile on this machine."""
    deployment = lane_of(profile).deployment(profile)
    return [_finding(what, check, profile, deployment) for what, check in CHECKS.items()]


def _finding(what: str, check: Check, profile: Profile, deployment: Deployment) -> Finding:
    try:
        return Finding(what, check(profile, deployment), ok=True)
    except NemotronError as error:
        return Finding(what, str(error), ok=False)
    except ModuleNotFoundError as error:
        return Finding(what, f"{error.name} is not installed", ok=False)


def _python(_profile: Profile, deployment: Deployment) -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if deployment.triton is None:  # a Triton in a container brings its own Python
        version += f", shared library in {library_folder()}"
    return version


def _libraries(profile: Profile, _deployment: Deployment) -> str:
    installed = lane_of(profile).installed(profile)
    return ", ".join(f"{name} {version}" for name, version in installed.items())


def _triton(_profile: Profile, deployment: Deployment) -> str:
    with tempfile.TemporaryDirectory() as folder:
        triton = find_triton(deployment.triton, Path(folder))
        if not (triton.backends / BACKEND).is_dir():
            raise NemotronError(
                f"Triton has no backend {BACKEND}",
                where=triton.backends,
                remedy="use the lane's container",
            )
        return str(triton.program)


def _security(profile: Profile, deployment: Deployment) -> str:
    if (warning := exposure(deployment, profile.address)) is not None:
        raise NemotronError(warning)
    version = triton_version(deployment.triton) or "of an unknown version"
    return f"Triton {version} on {profile.address}"


def _gpus(_profile: Profile, deployment: Deployment) -> str:
    if deployment.gpu is None:
        return "none needed"
    count = deployment.gpus_per_node
    return f"{count} × {require_gpus(deployment.gpu, count)}"


def _launcher(_profile: Profile, deployment: Deployment) -> str:
    if deployment.nodes == 1:
        return "none needed"
    own, starters = deployment.launch.prefix[:1], (SRUN, MPIRUN)
    found = [path for name in (*own, *starters) if (path := shutil.which(name))]
    if not all(map(shutil.which, own)) or not any(map(shutil.which, starters)):
        missing = " or ".join([*own, " and ".join(starters)])
        raise NemotronError(f"{missing} are not on PATH", remedy="use the lane's container")
    return ", ".join(found)


def _shared_memory(_profile: Profile, deployment: Deployment) -> str:
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < deployment.shared_memory:
        raise NemotronError(
            f"{free >> 20} MiB are free, {deployment.shared_memory >> 20} are needed",
            where=SHARED_MEMORY,
            remedy="enlarge it (docker --shm-size, an emptyDir with medium Memory)",
        )
    return f"{free >> 20} MiB free"


def _ports(profile: Profile, _deployment: Deployment) -> str:
    choose_ports(profile)
    return ", ".join(
        f"{name} {port}" for name, port in profile.ports.model_dump(exclude_none=True).items()
    )


Check = Callable[[Profile, Deployment], str]
"""Returns what this machine has. Raises `NemotronError` if that is not enough."""
CHECKS: dict[str, Check] = {
    "Python": _python,
    "libraries": _libraries,
    "Triton": _triton,
    "security": _security,
    "GPUs": _gpus,
    "launcher": _launcher,
    "shared memory": _shared_memory,
    "ports": _ports,
}
