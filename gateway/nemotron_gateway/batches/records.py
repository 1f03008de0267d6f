"""The objects of OpenAI's API for files and batches, as they are answered and stored."""

from __future__ import annotations

import secrets
import time

import msgspec

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
"""Statuses after which a batch does not change."""


def new_id(prefix: str) -> str:
    """Return a random id."""
    return prefix + secrets.token_hex(12)


def now() -> int:
    """Return the time in whole seconds, as OpenAI's API has it."""
    return int(time.time())


class FileObject(msgspec.Struct, kw_only=True, frozen=True):
    """A file that was uploaded, or that a batch has made."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None
    """Time from which the file is gone, or `None` if it stays until it is deleted."""
    object: str = "file"
    status: str = "processed"


class BatchError(msgspec.Struct, kw_only=True, frozen=True):
    """Why a batch failed as a whole. `line` is the number of the input's line, from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct, kw_only=True, frozen=True):
    data: list[BatchError]
    object: str = "list"


class RequestCounts(msgspec.Struct, kw_only=True, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, kw_only=True, frozen=True):
    """A batch. A change makes a new object, so that another thread never sees half of it."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: str = "validating"
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None
    object: str = "batch"

    @property
    def is_final(self) -> bool:
        return self.status in FINAL


class StoredBatch(msgspec.Struct, kw_only=True, frozen=True):
    """A batch on the disk, with what the API does not show."""

    batch: Batch
    keep_seconds: int | None = None
    """Seconds for which its output files stay, from their making."""
    outcome: str | None = None
    """The final status that the batch is about to have, once its rows are done."""
