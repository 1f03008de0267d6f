"""A Triton that is installed here: its program, its backends, what its processes need."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from nemotron_build.profile import CpuProfile, GpuProfile, Profile
from nemotron_core.errors import NemotronError

EXIT_SECONDS = 20
PR_SET_PDEATHSIG = 1
STOP = signal.SIGUSR1
"""Asks `serve` to drain. Launchers hand it on to every rank; SIGTERM some take for themselves."""
JOB_VARIABLE = "NEMOTRON_JOB"
_LIBC = ctypes.CDLL(None)
LOG_TAIL_LINES = 3
TABLE_LINES = ("+", "|")


@dataclass(frozen=True)
class Triton:
    program: Path
    backends: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, models: Path, shared_memory_prefix: str) -> list[str]:
        """What every process of it is started with."""
        return [
            str(self.program),
            f"--model-repository={models}",
            f"--backend-directory={self.backends}",
            f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={EXIT_SECONDS // 2}",
            "--allow-gpu-metrics=false",
        ]

    def start(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """In a session of its own: a terminal's Ctrl-C is for us, who then drain."""
        try:
            file = log.open("wb")
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=log) from error
        with file:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,  # it reads standard input and ends with it
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  # calls nothing but the kernel
            )


def die_with_parent() -> None:
    """Also where the parent is killed, as launchers do with the ranks of a failed job.

    STOP is for the parent alone: Slurm can hand it to every process of a job.
    """
    signal.signal(STOP, signal.SIG_IGN)
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def log_lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def log_tail(log: Path) -> str:
    """Its last lines, as one."""
    lines = [line for line in log_lines(log) if line.strip() and not line.startswith(TABLE_LINES)]
    return " | ".join(lines[-LOG_TAIL_LINES:])


@contextmanager
def shared_memory() -> Iterator[str]:
    """A prefix for the names of a Triton's shared memory; what is left of it is removed.

    In a rank it begins with that of its job, whose launcher removes what a killed rank leaves.
    """
    prefix = f"{os.environ.get(JOB_VARIABLE, 'nemotron-')}{secrets.token_hex(8)}-"
    try:
        yield prefix
    finally:
        for file in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108  # where shm_open puts it
            file.unlink(missing_ok=True)


def find_triton(profile: Profile, scratch: Path) -> Triton:
    """The wheel's for the CPU lane, the container's for the others.

    The wheel's backends are arranged in a new folder of `scratch`.
    """
    if isinstance(profile, CpuProfile):
        return _from_wheel(scratch)
    triton = container_triton(profile)
    if not triton.program.is_file():
        raise NemotronError(
            "no Triton here",
            where=triton.program,
            remedy="run this in the lane's container, or name its place with `triton`"
            " in the profile",
        )
    return triton


def container_triton(profile: GpuProfile) -> Triton:
    """As NVIDIA's containers have it."""
    return Triton(profile.triton / "bin" / "tritonserver", profile.triton / "backends")


def _from_wheel(scratch: Path) -> Triton:
    wheel = _wheel_folder()
    return Triton(
        wheel / "tritonserver" / "bin" / "tritonserver",
        _backend_folder(wheel / "tritonserver", scratch / "backends"),
        # A Triton that is killed leaves a folder behind.
        _environment(wheel) | {"TMPDIR": str(scratch)},
    )


def _wheel_folder() -> Path:
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name="pytriton")
    return Path(spec.origin).parent


def _backend_folder(triton: Path, target: Path) -> Path:
    """The Python backend with this Python's stub beside it, as Triton wants to find them."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise NemotronError(
            f"Triton's wheel has no Python backend for Python {version}",
            remedy="use Python 3.10 to 3.12",
        )
    shutil.copytree(triton / "backends" / "python", target / "python")
    shutil.copy(stub, target / "python")
    for file in (target / "python").glob("*triton*"):
        file.chmod(0o755)
    return target


def _environment(wheel: Path) -> dict[str, str]:
    """What the stub needs to become this Python: its library, its packages."""
    bundled = wheel.with_name("nvidia_pytriton.libs")
    libraries = [str(library_folder()), str(bundled), os.environ.get("LD_LIBRARY_PATH")]
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        # The stub is isolated from PYTHONPATH and the like; it becomes the python3 it finds first.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def library_folder() -> Path:
    """Where this Python's shared library lies."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    recorded = Path(sysconfig.get_config_var("LIBDIR") or "")
    places = [
        recorded,
        recorded / (sysconfig.get_config_var("MULTIARCH") or ""),  # Debian
        Path(sys.base_prefix) / "lib",  # a Python that was moved after it was built
    ]
    for place in places:
        if (place / name).is_file():
            return place
    raise NemotronError(
        f"no {name}: Triton's Python backend needs the interpreter as a shared library",
        where=sys.base_prefix,
        remedy="install it (Debian: libpython3-dev), or a Python built with --enable-shared",
    )
