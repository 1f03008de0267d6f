"""The journal of a conversion: what is already on disk, so that a later run can resume."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from nemotron_convert.source.nemo import Source
from nemotron_convert.target.manifest import MANIFEST_NAME
from nemotron_convert.target.tensor_file import TensorFile
from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest, write_atomically
from nemotron_core.folder import empty_folder

FOLDER = "journal"
"""Name of the folder for everything that a conversion needs to resume."""
FINGERPRINT_NAME = "conversion.json"
SYNC_SECONDS = 1.0
"""Seconds between two times at which finished tensors are made durable."""

Finished = frozenset[tuple[str, str]]
"""The finished tensors as pairs (file name, tensor name)."""
PieceKey = tuple[str, int, int, int, int]
"""A piece of the source: tensor, layer, row and column of its chunk, first row in the chunk."""


class Note(NamedTuple):
    """What is noteworthy about a piece of the source, as it was converted to BF16."""

    nonfinite: bool = False
    """Whether it holds NaN or Inf."""
    overflow: int = 0
    """Finite values that became Inf."""
    underflow: int = 0
    """Values other than 0 that became 0."""


Notes = Mapping[PieceKey, Note]


@dataclass(frozen=True)
class Progress:
    """What earlier runs of a conversion did."""

    finished: Finished = frozenset()
    notes: Notes = field(default_factory=dict)
    """The notes on all pieces of the finished tensors, and perhaps on others."""
    is_complete: bool = False
    """Whether the manifest is written, so that only the folder's last name is missing."""


def source_digest(source: Source) -> str:
    """Return the SHA-256 (hex) of the source's configuration and its files' metadata."""
    return text_digest("\n".join(source.identity()))


def fingerprint(source: Source, options: Mapping[str, object]) -> dict[str, object]:
    """Return what a resumed run must have in common with the first: source and options."""
    return {"source": source_digest(source), **options}


def start(folder: Path, fingerprint: dict[str, object], *, resume: bool) -> Progress:
    """Begin or resume a conversion in `folder` and return what earlier runs did.

    Raises `NemotronError` if `folder` was begun with another fingerprint.
    """
    path = folder / FINGERPRINT_NAME
    if not resume or not path.exists():
        empty_folder(folder)
        (folder / FOLDER).mkdir()
        write_atomically(path, json.dumps(fingerprint))
        return Progress()
    if changed := _differences(path, fingerprint):
        raise NemotronError(
            f"it was begun with another {', '.join(changed)}",
            where=folder,
            remedy="use the same as before, or --overwrite instead of --resume to begin again",
        )
    if (folder / MANIFEST_NAME).exists():
        return Progress(is_complete=True)
    (folder / FOLDER).mkdir(exist_ok=True)
    return _progress(folder / FOLDER)


def finish(folder: Path) -> None:
    """Remove the journal of a complete folder, except the fingerprint, for `require_same`."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def discard(folder: Path) -> None:
    """Make an unfinished folder worthless, so that no run resumes from it."""
    (folder / FINGERPRINT_NAME).unlink(missing_ok=True)


def require_same(folder: Path, fingerprint: dict[str, object]) -> None:
    """Raise `NemotronError` if the complete output in `folder` has another fingerprint."""
    if changed := _differences(folder / FINGERPRINT_NAME, fingerprint):
        raise NemotronError(
            f"it was made with another {', '.join(changed)}",
            where=folder,
            remedy="name another with -o or remove it",
        )


def _differences(path: Path, fingerprint: dict[str, object]) -> list[str]:
    """Return the keys that differ in the fingerprint at `path`, all if it cannot be parsed."""
    try:
        stored = _parse(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        stored = None
    if not isinstance(stored, dict):
        return list(fingerprint)
    return [key for key, value in fingerprint.items() if stored.get(key) != value]


def _progress(folder: Path) -> Progress:
    """Return what the journals of all processes say."""
    finished: set[tuple[str, str]] = set()
    notes: dict[PieceKey, Note] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            match _parse(line):  # a kill can cut the last line: that tensor is then copied again
                case [str(file), str(tensor)]:
                    finished.add((file, tensor))
                case [
                    [str(name), int(layer), int(row), int(column), int(first)],
                    [bool(flag), int(above), int(below)],
                ]:
                    notes[name, layer, row, column, first] = Note(flag, above, below)
    return Progress(frozenset(finished), notes)


def _parse(text: str) -> object:
    """Return the JSON value, or `None` if the text is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class Journal:
    """Records finished tensors of one process, each only after its bytes are durable.

    A background thread makes the files durable about once per `SYNC_SECONDS`. After a kill or a
    power failure, every tensor that the journal names is complete, and at most the tensors of the
    last seconds are not named.
    """

    def __init__(self, folder: Path, process: int, files: Mapping[str, TensorFile]) -> None:
        self._files = files
        self._pending: list[tuple[str, str] | tuple[PieceKey, Note]] = []
        self._lock = threading.Lock()
        path = folder / FOLDER / f"{process}.jsonl"
        self._file = path.open("ab")
        if path.stat().st_size:
            self._file.write(b"\n")  # ends a line that a kill has cut
        self._ended = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def add(self, file: str, tensor: str) -> None:
        """Add a tensor whose bytes were all written. Raises `OSError` if an earlier sync failed."""
        if self._error is not None:
            raise self._error
        with self._lock:
            self._pending.append((file, tensor))

    def add_note(self, piece: PieceKey, note: Note) -> None:
        """Add a note on a piece; this must come before `add` for the piece's last tensor."""
        with self._lock:
            self._pending.append((piece, note))

    def close(self) -> None:
        """Record the remaining tensors. The tensor files must still be open.

        Raises `OSError` if they, or some before them, could not be made durable. The kernel reports
        such a failure only once, so a later sync of the same file would succeed.
        """
        self._ended.set()
        self._thread.join()
        try:
            if self._error is not None:
                raise self._error
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
        """Make the pending tensors durable, then the lines that name them."""
        with self._lock:
            pending, self._pending = self._pending, []
        if not pending:
            return
        for name in {file for file, _ in pending if isinstance(file, str)}:
            self._files[name].sync()
        lines = "".join(json.dumps(entry) + "\n" for entry in pending)
        self._file.write(lines.encode())
        self._file.flush()
        os.fdatasync(self._file.fileno())
