"""A lock on a file, which ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from nemotron_core.errors import NemotronError


def open_locked(path: Path) -> int:
    """Open and lock a file, and return its descriptor.

    The lock belongs to the open file, so it ends with the process, however that ends.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            os.close(descriptor)
            raise NemotronError(
                "another process is writing it", where=path, remedy="wait for that one or end it"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        # Between the opening and the lock another process replaced the file: open the new one.
        os.close(descriptor)
