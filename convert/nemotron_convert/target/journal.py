"""What of a conversion is already on the disk, so that a later run can go on from there."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from nemotron_convert.source.nemo import Source
from nemotron_convert.target.tensor_file import TensorFile
from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest, write_atomically

FOLDER = "journal"
OF_CONVERSION = "conversion.json"
SYNC_SECONDS = 1.0

Finished = frozenset[tuple[str, str]]
"""(file, tensor) pairs."""


def source_digest(source: Source) -> str:
    """SHA-256 (hex) of the source's files by name, size and time of change, and its configuration.

    To read all of it would take as long as converting it.
    """
    archive = source.archive
    outer = archive.path if archive.path.is_file() else None
    lines = [repr(source.config), source.layout]
    for name, member in sorted(archive.members.items()):
        changed = (outer or archive.path / name).stat().st_mtime_ns
        lines.append(f"{name} {member.size} {member.offset} {changed}")
    return text_digest("\n".join(lines))


def fingerprint(source: Source, options: Mapping[str, object]) -> dict[str, object]:
    """What a resumed run must have in common with the first: source and options."""
    return {"source": source_digest(source), **options}


def start(folder: Path, now: dict[str, object], *, resume: bool) -> Finished:
    """Begin or take up a conversion in `folder`; what earlier runs have finished.

    NemotronError if `folder` was begun from another source or with other options.
    """
    path = folder / FOLDER / OF_CONVERSION
    if not resume or not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(now))
        return frozenset()
    if changed := _differences(path, now):
        raise NemotronError(
            f"it was begun with another {', '.join(changed)}",
            where=folder,
            remedy="use the same as before, or leave out --resume to begin again",
        )
    return _finished(path.parent)


def finish(folder: Path) -> None:
    """Once `folder` is whole: only what it was made from stays, for `require_same`."""
    (folder / FOLDER / OF_CONVERSION).rename(folder / OF_CONVERSION)
    shutil.rmtree(folder / FOLDER)


def require_same(folder: Path, now: dict[str, object]) -> None:
    """NemotronError if the whole output in `folder` is of another source or of other options."""
    if changed := _differences(folder / OF_CONVERSION, now):
        raise NemotronError(
            f"it was made with another {', '.join(changed)}",
            where=folder,
            remedy="name another with -o or remove it",
        )


def _differences(path: Path, now: dict[str, object]) -> list[str]:
    try:
        before = _loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        before = None
    return [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]


def _finished(folder: Path) -> Finished:
    found = set()
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            entry = _loads(line)  # a kill may have torn the last line: that tensor is done again
            if isinstance(entry, list) and len(entry) == 2:
                found.add((str(entry[0]), str(entry[1])))
    return frozenset(found)


def _loads(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class Journal:
    """Writes down finished tensors, each only when the disk holds it.

    A background thread makes the files durable about once per `SYNC_SECONDS`: after a kill, or a
    machine that lost power, what the journal names is there, and at most the last seconds are not
    named.
    """

    def __init__(self, folder: Path, process: int, files: Mapping[str, TensorFile]) -> None:
        self._files = files
        self._pending: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        path = folder / FOLDER / f"{process}.jsonl"
        self._file = path.open("ab")
        if path.stat().st_size:
            self._file.write(b"\n")  # ends a line that a kill has torn
        self._ended = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def add(self, file: str, tensor: str) -> None:
        """Note a tensor whose bytes were all written; OSError if the disk has failed."""
        if self._error is not None:
            raise self._error
        with self._lock:
            self._pending.append((file, tensor))

    def close(self) -> None:
        """Write down what is still to be; the files must be open."""
        self._ended.set()
        self._thread.join()
        try:
            self._flush()
        finally:
            self._file.close()

    def _run(self) -> None:
        while not self._ended.wait(SYNC_SECONDS):
            try:
                self._flush()
            except OSError as error:
                self._error = error
                return

    def _flush(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
        if not pending:
            return
        for name in {file for file, _ in pending}:
            self._files[name].sync()
        lines = "".join(json.dumps(entry) + "\n" for entry in pending)
        self._file.write(lines.encode())
        self._file.flush()
        os.fdatasync(self._file.fileno())
