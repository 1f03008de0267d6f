"""One batch, from the check of its input to its files, as a job in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from nemotron_core.errors import NemotronError
from nemotron_core.files import partial_path
from nemotron_data.batch.host import Host
from nemotron_data.batch.interruption import Interrupted, Interruption
from nemotron_data.batch.job import Job
from nemotron_data.batch.progress import Progress
from nemotron_data.batch.results import ResultFile
from nemotron_data.batch.target import target_of
from nemotron_data.options import BatchOptions, Format
from nemotron_gateway.batches.error_lines import expired_lines, failure_line, read_lines
from nemotron_gateway.batches.records import (
    Batch,
    BatchError,
    BatchErrors,
    FileObject,
    RequestCounts,
    StoredBatch,
    new_id,
    now,
)
from nemotron_gateway.batches.store import FILE, INPUT, OwnerStore
from nemotron_gateway.batches.transport import Inside, InsideTransport
from nemotron_gateway.batches.validation import check_input
from nemotron_gateway.settings import GatewaySettings

LOG = logging.getLogger("nemotron_gateway")
URL = "http://localhost"
"""Name of this gateway in the manifest of a job."""


class Execution:
    """A batch that is being carried out.

    `run` is called in a thread, the other methods in the gateway's. If the gateway ends meanwhile,
    another execution goes on where this one was, also after a kill.
    """

    def __init__(
        self,
        store: OwnerStore,
        batch_id: str,
        settings: GatewaySettings,
        transport: Callable[[], InsideTransport],
    ) -> None:
        self.batch_id = batch_id
        self._store, self._settings, self._transport = store, settings, transport
        self._folder = store.working_folder(batch_id)
        self._output = self._folder / "output.jsonl"
        self._errors = target_of(str(self._output)).errors
        self._interruption = Interruption()
        self._changing = threading.Lock()
        self._progress: Progress | None = None
        self._end: str | None = None
        """Status that the batch gets because it was interrupted: expired or cancelled."""

    @classmethod
    def of(
        cls, store: OwnerStore, owner: str, batch_id: str, settings: GatewaySettings, inside: Inside
    ) -> Execution:
        """Return the execution of an owner's batch; to be called in the gateway's event loop."""
        loop = asyncio.get_running_loop()
        return cls(store, batch_id, settings, lambda: InsideTransport(inside, owner, loop))

    def view(self) -> Batch:
        """Return the batch with the counts of this moment."""
        stored, progress = self._store.stored(self.batch_id), self._progress
        batch = stored.batch
        if progress is None or progress.total is None or stored.outcome is not None:
            return batch
        return msgspec.structs.replace(batch, request_counts=_counts(progress))

    def stop(self) -> None:
        """Let the requests finish that are at the engine; the second time, drop them."""
        self._interruption.stop()

    def cancel(self) -> None:
        """Note that the batch is to be cancelled, and stop it."""
        with self._changing:
            batch = self._store.stored(self.batch_id).batch
            if batch.status not in ("validating", "in_progress"):
                return
            self._change(status="cancelling", cancelling_at=now())
        self._end = "cancelled"
        self.stop()

    def expire(self) -> None:
        """Stop the batch because its window has ended."""
        self._end = self._end or "expired"
        self.stop()

    def run(self) -> None:
        """Carry the batch out, or go on with it. What fails is the batch's failure."""
        stored = self._store.stored(self.batch_id)
        try:
            if stored.outcome is None:
                outcome = self._outcome(stored.batch)
                if outcome is None:
                    return  # the gateway shuts down
                self._conclude(outcome)
            self._finish()
        except Exception:
            # It stays as it is, and is tried again when the gateway starts.
            LOG.exception("batch %s cannot be finished", self.batch_id)

    def _outcome(self, batch: Batch) -> str | None:
        """Ask the rows, and return the final status; `None` if the batch goes on another time."""
        if batch.status == "cancelling":
            return "cancelled"
        if self._end is not None or batch.expires_at <= now():
            return self._end or "expired"
        try:
            if batch.status == "validating" and not self._validate(batch):
                return "failed"
            counts = self._job().run()
        except Interrupted:
            return self._end
        except NemotronError as error:
            message = str(error).replace(f"{self._folder}/", "")  # no path of this server
            self._fail([BatchError(code="batch_failed", message=message)])
            return "failed"
        except Exception:
            LOG.exception("batch %s failed", self.batch_id)
            self._fail([BatchError(code="server_error", message="the gateway's log says why")])
            return "failed"
        total = self._store.stored(self.batch_id).batch.request_counts.total
        if counts.finished + counts.failed < total:
            LOG.error("batch %s has only %s of %d requests", self.batch_id, counts, total)
            return None
        return "completed"

    def _validate(self, batch: Batch) -> bool:
        count, errors = check_input(
            self._folder / INPUT, batch.endpoint, self._settings.files.requests
        )
        if errors:
            self._fail(errors)
            return False
        with self._changing:
            if self._end is None:
                self._change(
                    status="in_progress",
                    in_progress_at=now(),
                    request_counts=RequestCounts(total=count),
                )
        return True

    def _job(self) -> Job:
        options = BatchOptions(
            source=str(self._folder / INPUT),
            output=str(self._output),
            url=[URL],
            input_format=Format.JSONL,
            allow_different_engines=True,  # a server may get a new engine within a day
            no_seed=True,
            accept=["any"],
            concurrency=self._settings.limits.requests,
            patience=math.inf,  # the batch has a time for all of its rows
        )
        host = Host(
            transport=lambda _url: self._transport(),
            progress=self._start_progress,
            interruption=lambda: self._interruption,
            failure_line=failure_line,
        )
        return Job(options, {}, host=host, title=self.batch_id)

    def _start_progress(self, title: str) -> Progress:
        self._progress = Progress(title)
        return self._progress

    def _fail(self, errors: list[BatchError]) -> None:
        with self._changing:
            self._change(errors=BatchErrors(data=errors))

    def _conclude(self, outcome: str) -> None:
        """Write down what the batch is about to be, and the names of its files."""
        if self._output.exists():
            with ResultFile(self._output) as results:
                results.load()  # cuts off what a kill has torn
        self._complete_errors(outcome)
        counts = self._final_counts()
        with self._changing:
            status = "cancelling" if outcome == "cancelled" else "finalizing"
            self._change(
                outcome=outcome,
                status=status,
                finalizing_at=now() if status == "finalizing" else None,
                output_file_id=new_id(FILE) if counts.completed else None,
                error_file_id=new_id(FILE) if counts.failed else None,
                request_counts=counts,
            )

    def _finish(self) -> None:
        """Make the batch's files, and end it. May be called again after a kill."""
        stored = self._store.stored(self.batch_id)
        batch = stored.batch
        assert stored.outcome is not None
        self._make_file(batch.output_file_id, self._output, "output", stored)
        self._make_file(batch.error_file_id, self._errors, "error", stored)
        with self._changing:
            self._change(status=stored.outcome, **{f"{stored.outcome}_at": now()})
        with suppress(OSError):
            shutil.rmtree(self._folder)

    def _make_file(self, file_id: str | None, path: Path, what: str, stored: StoredBatch) -> None:
        if file_id is None or not path.exists():  # made before a kill
            return
        created = now()
        keep = stored.keep_seconds
        self._store.add_file(
            path,
            FileObject(
                id=file_id,
                bytes=path.stat().st_size,
                created_at=created,
                filename=f"{self.batch_id}_{what}.jsonl",
                purpose="batch_output",
                expires_at=None if keep is None else created + keep,
            ),
        )

    def _complete_errors(self, outcome: str) -> None:
        """Write the error file anew: its whole lines, and those of requests that are too late."""
        lines = list(read_lines(self._errors))
        if outcome == "expired":
            lines += expired_lines(self._folder / INPUT, self._output, self._errors)
        if lines:
            partial = partial_path(self._errors)
            with partial.open("wb") as file:
                file.writelines(lines)
            partial.replace(self._errors)

    def _final_counts(self) -> RequestCounts:
        completed = sum(1 for _line in read_lines(self._output))
        failed = sum(1 for _line in read_lines(self._errors))
        total = self._store.stored(self.batch_id).batch.request_counts.total
        return RequestCounts(
            total=max(total, completed + failed), completed=completed, failed=failed
        )

    def _change(self, **changes: object) -> None:
        """Change the batch on the disk. `outcome` is stored beside it."""
        stored = self._store.stored(self.batch_id)
        outcome = changes.pop("outcome", stored.outcome)
        batch = msgspec.structs.replace(stored.batch, **changes)
        self._store.save(msgspec.structs.replace(stored, batch=batch, outcome=outcome))


def _counts(progress: Progress) -> RequestCounts:
    return RequestCounts(
        total=progress.total or 0,
        completed=progress.done - progress.failed,
        failed=progress.failed,
    )
