"""Files and batches on the local disk, each in the folder of the API key that it belongs to.

::

    FOLDER/.lock                   held by the one gateway that uses the folder
    FOLDER/OWNER/file-ID           the content of a file
    FOLDER/OWNER/file-ID.json      its description; a content without one is no file
    FOLDER/OWNER/batch_ID.json     a batch
    FOLDER/OWNER/batch_ID/         what its job writes, until it has ended

A content is whole and durable before its description is written, so a kill leaves no half file.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import msgspec

from nemotron_core.errors import NemotronError
from nemotron_core.files import PARTIAL, sync, write_atomically
from nemotron_core.openai.errors import HttpError
from nemotron_gateway.batches.records import Batch, FileObject, StoredBatch, new_id, now

FILE, BATCH = "file-", "batch_"
DESCRIPTION = ".json"
INPUT = "input.jsonl"
"""Link to a batch's input, in the folder of its job."""
OWNER = re.compile(r"[0-9a-f]{32}|everybody")
MAX_FILES = 10_000
"""Number of files, and of batches, of one key."""
Record = TypeVar("Record", FileObject, StoredBatch)


class OwnerStore:
    """The files and batches of one API key. Its methods may be called from any thread.

    Methods that take an id raise `HttpError` 404 if the key has nothing of that name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        """For what is in memory, so it is held for moments only."""
        self._writing = threading.Lock()
        self._files: dict[str, FileObject] = {}
        self._batches: dict[str, StoredBatch] = {}
        self._reserved = 0
        """Bytes of uploads that have not ended."""
        if folder.exists():
            self._load()

    def _load(self) -> None:
        for path in sorted(self.folder.glob(f"{BATCH}*{DESCRIPTION}")):
            self._batches[path.stem] = _decode(path, StoredBatch)
        for path in self.folder.glob(f"{FILE}*{DESCRIPTION}"):
            self._files[path.stem] = _decode(path, FileObject)
        for path in self.folder.iterdir():
            is_lost = path.name.startswith(FILE) and path.stem not in self._files
            if path.suffix == PARTIAL or is_lost:
                path.unlink()
            elif path.is_dir() and path.name not in self._unfinished():
                shutil.rmtree(path)

    def _unfinished(self) -> set[str]:
        return {stored.batch.id for stored in self.batches() if not stored.batch.is_final}

    def content(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self.folder / file_id

    def working_folder(self, batch_id: str) -> Path:
        """Return the folder of a batch's job."""
        return self.folder / batch_id

    def file(self, file_id: str) -> FileObject:
        """Return a file."""
        self._remove_expired()
        with self._lock:
            if file_id not in self._files:
                raise _no_such("file", file_id)
            return self._files[file_id]

    def files(self) -> list[FileObject]:
        """Return all files, the newest first."""
        self._remove_expired()
        with self._lock:
            return sorted(self._files.values(), key=lambda f: (f.created_at, f.id), reverse=True)

    def stored(self, batch_id: str) -> StoredBatch:
        """Return a batch as it was saved last."""
        with self._lock:
            if batch_id not in self._batches:
                raise _no_such("batch", batch_id)
            return self._batches[batch_id]

    def batches(self) -> list[StoredBatch]:
        """Return all batches, the newest first."""
        with self._lock:
            return sorted(
                self._batches.values(),
                key=lambda stored: (stored.batch.created_at, stored.batch.id),
                reverse=True,
            )

    def reserve(self, size: int, limit: int) -> None:
        """Keep room for an upload of at most `size` bytes.

        Raises `HttpError` 413 if the files of the key would then have more than `limit` bytes.
        """
        self._remove_expired()
        with self._lock:
            used = self._reserved + sum(file.bytes for file in self._files.values())
            used += sum(map(self._deleted_input_bytes, self._batches.values()))
            if used + size > limit or len(self._files) >= MAX_FILES:
                raise HttpError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the files of this key have {used} bytes in {len(self._files)} files, of at "
                    f"most {limit} bytes in {MAX_FILES}: delete some first",
                    code="storage_full",
                )
            self._reserved += size

    def _deleted_input_bytes(self, stored: StoredBatch) -> int:
        """Return the size of a batch's input that is on the disk for the batch alone."""
        if stored.batch.is_final or stored.batch.input_file_id in self._files:
            return 0
        path = self.working_folder(stored.batch.id) / INPUT
        return path.stat().st_size if path.exists() else 0

    def release(self, size: int) -> None:
        """Give back what `reserve` has kept."""
        with self._lock:
            self._reserved -= size

    def add_file(self, path: Path, file: FileObject) -> None:
        """Make a file of a content, which is moved. A kill leaves the content or the file."""
        with self._writing:
            if file.id not in self._files:
                sync(path)
                _link(path, self.content(file.id))
                self._write(file.id, file)
                with self._lock:
                    self._files[file.id] = file
            path.unlink()

    def delete_file(self, file_id: str) -> None:
        """Delete a file."""
        with self._lock:
            self.file(file_id)
            del self._files[file_id]
        self._unlink(file_id)

    def save(self, stored: StoredBatch) -> None:
        """Write a batch."""
        with self._writing:
            self._write(stored.batch.id, stored)
            with self._lock:
                self._batches[stored.batch.id] = stored

    def begin_batch(self, stored: StoredBatch) -> None:
        """Write a new batch, with a link to its input, which may be deleted from then on."""
        content = self.content(self.file(stored.batch.input_file_id).id)
        working_folder = self.working_folder(stored.batch.id)
        working_folder.mkdir()
        try:
            _link(content, working_folder / INPUT)
        except FileNotFoundError as error:  # deleted meanwhile
            raise _no_such("file", stored.batch.input_file_id) from error
        sync(working_folder)
        self.save(stored)

    def forget_oldest(self) -> None:
        """Forget the oldest batch that has ended."""
        ended = [stored.batch.id for stored in self.batches() if stored.batch.is_final]
        with self._lock:
            del self._batches[ended[-1]]
        self._description(ended[-1]).unlink(missing_ok=True)

    def new_path(self) -> Path:
        """Return a path for a content that is being written, in the folder, which is made."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.folder / (new_id(FILE) + PARTIAL)

    def _description(self, name: str) -> Path:
        return self.folder / (name + DESCRIPTION)

    def _write(self, name: str, record: FileObject | StoredBatch) -> None:
        write_atomically(self._description(name), msgspec.json.encode(record).decode())

    def _remove_expired(self) -> None:
        time = now()
        with self._lock:
            for file in list(self._files.values()):
                if file.expires_at is not None and file.expires_at <= time:
                    del self._files[file.id]
                    self._unlink(file.id)

    def _unlink(self, file_id: str) -> None:
        self._description(file_id).unlink(missing_ok=True)
        self.content(file_id).unlink(missing_ok=True)


class Store:
    """The stores of all keys in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owners: dict[str, OwnerStore] = {}
        for path in folder.iterdir():
            if path.is_dir() and OWNER.fullmatch(path.name):
                self._owners[path.name] = OwnerStore(path)

    def of(self, owner: str) -> OwnerStore:
        """Return the store of a key."""
        if owner not in self._owners:
            self._owners[owner] = OwnerStore(self._folder / owner)
        return self._owners[owner]

    def unfinished(self) -> Iterator[tuple[str, Batch]]:
        """Yield every batch that has not ended, with its owner, the oldest first."""
        found = [
            (owner, stored.batch)
            for owner, store in self._owners.items()
            for stored in store.batches()
            if not stored.batch.is_final
        ]
        yield from sorted(found, key=lambda entry: entry[1].created_at)


def _decode(path: Path, kind: type[Record]) -> Record:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise NemotronError(
            f"not a description of a file or batch: {error}",
            where=path,
            remedy="remove it together with the file that it describes",
        ) from error


def _link(path: Path, target: Path) -> None:
    """Give a file another name, or copy it where the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(path, target)
        sync(target)


def _no_such(kind: str, name: str) -> HttpError:
    return HttpError(HTTPStatus.NOT_FOUND, f"there is no {kind} {name!r}", code=f"{kind}_not_found")
