"""The temporary files of a server, which the next start removes if a killed one left them.

Whether a server still lives is told by a lock that its process holds: unlike a process id, a lock
is never another process's, and it counts across containers that share a folder.
"""

from __future__ import annotations

import fcntl
import glob
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "nemotron-"
LOCK_NAME = "lock"
LOCK_TEXT = b"nemotron serve\n"
"""Text in the file of a lock. Only beside it, everything is removed."""
UNNAMED_LOCK = f"{LOCK_NAME}.new"
FOLDER_NAME = re.compile(rf"{PREFIX}[a-z0-9_]{{8}}")
"""Name that `mkdtemp` gives to a folder. People have folders with such names too."""
MEMORY_NAME = re.compile(rf"({FOLDER_NAME.pattern})(-[0-9a-f]+){{5}}")
"""Name of a server's shared memory: that of its folder, and a UUID by Triton."""
START_SECONDS = 60.0
"""Age of a folder without a lock, and of shared memory that nobody uses, after which it is no part
of a server that only begins."""
LONGEST_PARENT = 60
"""Bytes of a path that leave room for the names of the sockets."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where shm_open puts it


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder that only this user can reach, and remove it with all shared memory of it.

    The names of its shared memory begin with the folder's name. The folder holds a lock for as long
    as this process lives. What killed servers have left is removed first.
    """
    remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_parent()))
    # The lock gets its name when it is held, so that no other start takes this for a leftover.
    unnamed = folder / UNNAMED_LOCK
    lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, LOCK_TEXT)
    unnamed.rename(folder / LOCK_NAME)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def remove_leftovers() -> list[Path]:
    """Remove what this user's killed servers have left, and return it.

    That is each folder whose lock nobody holds, with its shared memory, and shared memory whose
    folder is gone and which no process uses. Files and folders of other programs stay, whatever
    their names.
    """
    folders = [folder for folder in _parent().glob(f"{PREFIX}*") if _is_left(folder)]
    for folder in folders:
        _remove(folder)
    memory = [file for file in SHARED_MEMORY.glob(f"{PREFIX}*") if _has_no_folder(file)]
    used = _mapped_files() if memory else set()
    unused = [file for file in memory if str(file) not in used]
    for file in unused:
        file.unlink(missing_ok=True)
    return [*folders, *unused]


def _is_left(folder: Path) -> bool:
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        lock = folder / LOCK_NAME
        if not lock.exists():  # of a server that was killed, or begins, before it held its lock
            content = {path.name for path in folder.iterdir()}
            is_ours = FOLDER_NAME.fullmatch(folder.name) and content <= {UNNAMED_LOCK}
            return bool(is_ours) and _is_old(folder)
        file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # removed meanwhile, or not for us to open
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.read(file, len(LOCK_TEXT)) == LOCK_TEXT
    except OSError:
        return False
    finally:
        os.close(file)


def _has_no_folder(memory: Path) -> bool:
    """Return whether this is the shared memory of a server whose folder is gone."""
    name = MEMORY_NAME.fullmatch(memory.name)
    return name is not None and _is_old(memory) and not (_parent() / name[1]).exists()


def _is_old(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and time.time() - status.st_mtime > START_SECONDS


def _mapped_files() -> set[str]:
    """Return the paths of all files that processes have mapped, as far as this user may know."""
    paths: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # it has ended, or is another user's
            continue
        paths.update(line.split(maxsplit=5)[5] for line in lines if "/" in line)
    return paths


def shared_memory_prefix(folder: Path) -> str:
    """Return the prefix for the names of the shared memory of a server with this folder."""
    return f"{folder.name}-"


def remove_shared_memory(folder: Path) -> None:
    """Remove the shared memory that a killed Triton has left."""
    for file in SHARED_MEMORY.glob(f"{glob.escape(shared_memory_prefix(folder))}*"):
        file.unlink(missing_ok=True)


def _parent() -> Path:
    """Return where the folders are. A Unix socket's path has at most 107 bytes."""
    folder = tempfile.gettempdir()
    return Path(folder if len(os.fsencode(folder)) <= LONGEST_PARENT else "/tmp")  # noqa: S108


def _remove(folder: Path) -> None:
    remove_shared_memory(folder)
    shutil.rmtree(folder, ignore_errors=True)
