"""A sandbox for programs that a model has written: bubblewrap, without network and files.

A program sees Python and the system's libraries, read-only, and an empty folder of its own in
memory. It has passed if it came to its end, which it shows by a word that is drawn for each.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nemotron_core.errors import NemotronError

PROGRAM = "bwrap"
SECONDS = 10
"""Longest time for one program."""
MEMORY = 4 << 30
"""Address space in bytes of each process."""
FILE_SIZE = 16 << 20
"""Size in bytes of each file, and of what a program prints."""
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache")
START = f"""
import resource, sys
for name, value in (("CPU", {SECONDS}), ("AS", {MEMORY}), ("FSIZE", {FILE_SIZE}), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
exec(compile(sys.stdin.read(), "program", "exec"), {{"__name__": "__main__"}})
"""
"""Sets the limits, which the program cannot raise, and runs it."""


def check_sandbox() -> None:
    """Raise `NemotronError` unless programs can run in the sandbox here."""
    remedy = "install bubblewrap (Debian: apt install bubblewrap), or leave the benchmark out"
    if shutil.which(PROGRAM) is None:
        raise NemotronError(
            "there is no sandbox for the model's code", where=PROGRAM, remedy=remedy
        )
    if not passes("pass"):
        raise NemotronError(
            "the sandbox for the model's code does not start",
            where=PROGRAM,
            remedy="allow user namespaces on this machine, or leave the benchmark out",
        )


def run_programs(
    programs: Sequence[str], report: Callable[[int], None] = lambda done: None
) -> list[bool]:
    """Return for each program whether it came to its end without an error.

    `report` is called with the number of programs that have ended.
    """
    results = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, result in enumerate(pool.map(passes, programs), 1):
            results.append(result)
            report(number)
    return results


def passes(program: str) -> bool:
    """Return whether a program comes to its end in the sandbox without an error."""
    word = secrets.token_hex(16)
    text = f"{program}\n\nprint('\\n{word}')\n"
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.communicate(text.encode(errors="replace"), SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - len(word) - 1))
        return process.returncode == 0 and output.read().strip() == word.encode()


def _command() -> list[str]:
    python = Path(sys.executable).resolve()
    folders = [folder for folder in (*SYSTEM, sys.base_prefix) if Path(folder).exists()]
    return [
        *(PROGRAM, "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"),
        *(word for folder in folders for word in ("--ro-bind", folder, folder)),
        *("--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp"),  # noqa: S108, inside
        *("--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp"),  # noqa: S108
        *(str(python), "-I", "-c", START),
    ]
