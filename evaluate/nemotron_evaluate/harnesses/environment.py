"""Where harnesses are: each in a Python environment of its own, with pinned versions.

Their dependencies exclude each other's and ours. `locks/NAME.txt` pins every package of a harness
by version and hash, and `locks/NAME.in` says what the lock is made of.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import typer

from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest, write_atomically

LOCKS = Path(__file__).with_name("locks")
BUILD = LOCKS / "build.txt"
"""What builds the packages that exist as sources only."""
OLDEST_PYTHON = re.compile(r"^# Python (\d+)\.(\d+)$", re.MULTILINE)
"""Line of a `.in` with the oldest Python that a harness runs on."""
PINNED = re.compile(r"^[\w.-]+==", re.MULTILINE)
"""Begin of a package's line in a lock."""
INSTALLED = "installed.txt"
"""The lock that an environment was made from, written when it is complete."""
PIP = ("--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--requirement")
"""Options of pip: exactly what the lock names, which is complete, and nothing else."""


def default_folder() -> Path:
    """Return the folder of all environments, in the user's data folder."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "nemotron" / "harnesses"


def harness_names() -> list[str]:
    """Return the names of the harnesses that can be installed."""
    return sorted(path.stem for path in LOCKS.glob("*.in") if path.stem != BUILD.stem)


class Environment:
    """The environment of one harness, in a folder of the same name inside `folder`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.home = folder / name
        self._lock = LOCKS / f"{name}.txt"

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the lock: two equal ones are the same versions of everything."""
        return text_digest(self._lock.read_text(encoding="utf-8"))

    def check(self) -> None:
        """Raise `NemotronError` unless the environment is complete and of this version's lock."""
        remedy = f"run: nemotron eval install {self.name}"
        if self.home.parent != default_folder():
            remedy += f" --environments {self.home.parent}"
        try:
            installed = (self.home / INSTALLED).read_text(encoding="utf-8")
        except OSError:
            raise NemotronError(
                f"the harness {self.name} is not installed", where=self.home, remedy=remedy
            ) from None
        if installed != self._lock.read_text(encoding="utf-8"):
            raise NemotronError(
                f"the harness {self.name} is of another version", where=self.home, remedy=remedy
            )

    def program(self, name: str) -> Path:
        """Return the path of a program of the environment."""
        return self.home / "bin" / name

    def package(self, name: str) -> Path:
        """Return the folder of an installed package. Raises `NemotronError` if there is none."""
        matches = sorted((self.home / "lib").glob(f"python3*/site-packages/{name}"))
        if not matches:
            raise NemotronError(
                f"the environment has no package {name}",
                where=self.home,
                remedy=f"run: nemotron eval install {self.name}",
            )
        return matches[0]

    def install(self) -> None:
        """Make the environment anew, from the package index that pip is configured for.

        Raises `NemotronError` if the harness is unknown or cannot be installed. What was stopped
        is not taken for complete, and the same call begins again.
        """
        if self.name not in harness_names():
            raise NemotronError(
                f"there is no harness {self.name}",
                where="nemotron eval install",
                remedy=f"the harnesses are {', '.join(harness_names())}",
            )
        oldest = OLDEST_PYTHON.search((LOCKS / f"{self.name}.in").read_text(encoding="utf-8"))
        if oldest is not None and sys.version_info[:2] < (int(oldest[1]), int(oldest[2])):
            raise NemotronError(
                f"{self.name} needs Python {oldest[1]}.{oldest[2]} or later",
                where=sys.executable,
                remedy="install nemotron-triton[evaluate] in an environment of such a Python",
            )
        try:
            if self.home.exists():
                shutil.rmtree(self.home)
            self.home.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=self.home) from error
        self._run("the environment", [sys.executable, "-m", "venv", str(self.home)])
        count = len(PINNED.findall(self._lock.read_text(encoding="utf-8")))
        typer.echo(f"installing up to {count} packages, which takes minutes", err=True)
        pip = [str(self.program("python")), "-m", "pip", "install"]
        self._run("what builds packages", [*pip, *PIP, str(BUILD)])
        # Without isolation, sources are built with what was just installed by its hash.
        command = [*pip, "--no-build-isolation", *PIP, str(self._lock)]
        self._run("the packages", command)
        write_atomically(self.home / INSTALLED, self._lock.read_text(encoding="utf-8"))

    def _run(self, what: str, command: list[str]) -> None:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if "error" in line.lower()] or lines
            raise NemotronError(
                f"{what} could not be installed: {' '.join(errors[:2])}"[:500],
                where=self.home,
                remedy="see that Python has venv and pip reaches a package index, and repeat it",
            )
