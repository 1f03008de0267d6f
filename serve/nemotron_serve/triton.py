"""Triton as it is installed here: its program, its backends, and the start of its processes."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from nemotron_core.errors import NemotronError

EXIT_SECONDS = 20
"""Seconds in which a process has to end by itself before it is killed."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals with which a person or a batch system asks to stop."""
PR_SET_PDEATHSIG = 1
DRAIN = signal.SIGUSR1
"""Asks `serve` to drain. All launchers forward it to every rank; some handle SIGTERM themselves."""
_LIBC = ctypes.CDLL(None)
LOG_TAIL_LINES = 3
TABLE_LINES = ("+", "|")
"""Beginnings of the lines of the tables in Triton's log."""


@dataclass(frozen=True)
class Triton:
    """An installed Triton server."""

    program: Path
    backends: Path
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables that its processes need."""

    def command(self, models: Path, shared_memory_prefix: str) -> list[str]:
        """Return the beginning of the command line of every Triton process."""
        return [
            str(self.program),
            f"--model-repository={models}",
            f"--backend-directory={self.backends}",
            f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
        ]

    def start(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process whose output is added to `log`.

        The process is out of reach of signals that ask to stop: they are for `nemotron serve`,
        which drains. Raises `NemotronError` if `log` cannot be written.
        """
        try:
            file = log.open("ab")
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=log) from error
        with file:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,  # Triton reads standard input and ends with it
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment,
                start_new_session=True,
                preexec_fn=shield,  # noqa: PLW1509  # only calls the kernel
            )


def shield() -> None:
    """Do as `die_with_parent`, and block the signals that ask to stop, here and in all children.

    Slurm sends them to every process of a step, and on SIGTERM Triton no longer gives running
    ensembles' steps anything to do. Blocked, they do not even reach handlers of a library.
    """
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def die_with_parent() -> None:
    """Let this process be killed when its parent ends: launchers kill the ranks of a failed job.

    The process also ignores `DRAIN`, which Slurm can send to every process of a job and
    which is meant for the parent alone.
    """
    signal.signal(DRAIN, signal.SIG_IGN)
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def log_lines(log: Path) -> list[str]:
    """Return the lines of a log, in which bytes that are not UTF-8 are replaced."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def log_tail(log: Path) -> str:
    """Return the last lines of a log as one line."""
    lines = [line for line in log_lines(log) if line.strip() and not line.startswith(TABLE_LINES)]
    return " | ".join(lines[-LOG_TAIL_LINES:])


def find_triton(installation: Path | None, scratch: Path) -> Triton:
    """Return the Triton in a folder, or the one in the wheel nvidia-pytriton for `None`.

    The wheel's backends are copied into a new folder in `scratch`, as Triton expects them. Raises
    `NemotronError` if there is no Triton.
    """
    if installation is None:
        return _wheel_triton(scratch)
    triton = installed_triton(installation)
    if not triton.program.is_file():
        raise NemotronError(
            "no Triton here",
            where=triton.program,
            remedy="run this in the lane's container, or name its place with `triton`"
            " in the profile",
        )
    return triton


def installed_triton(folder: Path) -> Triton:
    """Return the Triton in a folder that is laid out like the one in NVIDIA's containers."""
    return Triton(folder / "bin" / "tritonserver", folder / "backends")


def _wheel_triton(scratch: Path) -> Triton:
    wheel = _wheel_folder()
    return Triton(
        wheel / "tritonserver" / "bin" / "tritonserver",
        _backend_folder(wheel / "tritonserver", scratch / "backends"),
        # A Triton that is killed leaves a folder in TMPDIR.
        _environment(wheel) | {"TMPDIR": str(scratch)},
    )


def _wheel_folder() -> Path:
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name="pytriton")
    return Path(spec.origin).parent


def _backend_folder(triton: Path, target: Path) -> Path:
    """Copy the Python backend and this Python's stub to `target`, where Triton expects them."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise NemotronError(
            f"Triton's wheel has no Python backend for Python {version}",
            remedy="use Python 3.10 to 3.12",
        )
    try:
        shutil.copytree(triton / "backends" / "python", target / "python")
        shutil.copy(stub, target / "python")
        for file in (target / "python").glob("*triton*"):
            file.chmod(0o755)
    except (OSError, shutil.Error) as error:
        raise NemotronError(
            f"cannot copy Triton's Python backend: {error}",
            where=target,
            remedy="set TMPDIR to a folder with room",
        ) from error
    if os.statvfs(target).f_flag & os.ST_NOEXEC:
        raise NemotronError(
            "no program may run in this folder (it is mounted noexec), but Triton's Python backend"
            " is one",
            where=target,
            remedy="set TMPDIR to a folder where programs may run, with a short path",
        )
    return target


def _environment(wheel: Path) -> dict[str, str]:
    """Return the environment in which the stub runs this Python with its packages."""
    bundled = wheel.with_name("nvidia_pytriton.libs")
    libraries = [str(library_folder()), str(bundled), os.environ.get("LD_LIBRARY_PATH")]
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        # The stub ignores PYTHONPATH and the like. It runs as the first python3 on PATH.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def library_folder() -> Path:
    """Return the folder of this Python's shared library.

    Raises `NemotronError` if this Python has no shared library.
    """
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    recorded = Path(sysconfig.get_config_var("LIBDIR") or "")
    candidates = [
        recorded,
        recorded / (sysconfig.get_config_var("MULTIARCH") or ""),  # Debian
        Path(sys.base_prefix) / "lib",  # a Python that was moved after it was built
    ]
    for folder in candidates:
        with suppress(OSError):  # a folder that this user cannot read
            if (folder / name).is_file():
                return folder
    raise NemotronError(
        f"no {name}: Triton's Python backend needs the interpreter as a shared library",
        where=sys.base_prefix,
        remedy="install it (Debian: libpython3-dev), or a Python built with --enable-shared",
    )
