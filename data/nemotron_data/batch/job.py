"""A batch job: check that input, output and server fit together, then run what is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_data.batch.admission import Admission
from nemotron_data.batch.manifest import Manifest, check_same, read_manifest, write_manifest
from nemotron_data.batch.progress import Progress
from nemotron_data.batch.results import ResultFile
from nemotron_data.batch.run import Counts, Results, Run, Work
from nemotron_data.batch.server import Server
from nemotron_data.options import BatchOptions, Value
from nemotron_data.rows import STREAM, Source
from nemotron_data.transport.factory import open_transport
from nemotron_data.transport.protocol import API_KEY

ERRORS = ".errors.jsonl"


class Job:
    """One batch.

    `defaults` are keys of a request body for rows that do not set them; the options `model`,
    `max_tokens` and `temperature` are not read. `key_variable` names the environment variable with
    the API key. `title` stands in front of the progress.
    """

    def __init__(
        self,
        options: BatchOptions,
        defaults: Mapping[str, Value],
        *,
        key_variable: str = API_KEY,
        title: str = "batch",
    ) -> None:
        self._options = options
        self._defaults = defaults
        self._key_variable = key_variable
        self._title = title

    def run(self) -> Counts:
        """Send every row that has no result yet.

        A row that fails permanently is stored in OUTPUT.errors.jsonl with the reason, and the next
        run sends it again. Raises `NemotronError` if the run cannot continue, and `Interrupted`
        after a signal. In both cases a job with the same options continues the run.
        """
        options = self._options
        with contextlib.closing(Source(options.source)) as source:
            if options.output != STREAM:
                return self._write_file(source, Path(options.output))
            if options.ordered:
                raise NemotronError(
                    "standard output cannot be sorted", where="--ordered", remedy="name a file"
                )
            stdout = _LineWriter(sys.stdout.fileno(), "standard output")
            return asyncio.run(self._send_rows(source, set(), stdout, stdout))

    def _write_file(self, source: Source, output: Path) -> Counts:
        errors = errors_path(output)
        with ResultFile(output) as results:
            before = read_manifest(output)
            if before is None and not results.is_empty:
                raise NemotronError(
                    "the output holds something, but has no manifest",
                    where=output,
                    remedy="name another output or remove it",
                )
            if before is not None:  # what can be compared without the server is compared first
                check_same(output, before, self._manifest(source, before.server))
            finished = results.load()
            if len(finished) == source.rows:  # no server is needed
                if self._options.ordered:
                    for _row in source.read():
                        pass  # fills `source.numbers`
                    results.sort(source.numbers)
                return Counts(finished=len(finished))
            try:
                descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            except OSError as error:
                raise NemotronError(f"cannot write: {error.strerror}", where=errors) from error
            try:
                failures = _LineWriter(descriptor, str(errors))
                counts = asyncio.run(self._send_rows(source, finished, results, failures, output))
            finally:
                os.close(descriptor)
            if self._options.ordered:
                results.sort(source.numbers)
        if not counts.failed:
            errors.unlink()
        return counts

    def _manifest(self, source: Source, server: Mapping[str, Value]) -> Manifest:
        return Manifest(
            source=source.name,
            source_sha256=source.sha256,
            seed=self._options.seed,
            defaults=dict(self._defaults),
            server=dict(server),
            rows=source.rows,
        )

    async def _send_rows(
        self,
        source: Source,
        finished: set[int],
        results: Results,
        failures: Results,
        output: Path | None = None,
    ) -> Counts:
        options = self._options
        work = Work(
            source, finished, self._defaults, options.seed, options.attempts, results, failures
        )
        admission = Admission(
            options.concurrency, options.requests_per_minute, options.tokens_per_minute
        )
        transport = open_transport(
            options.url,
            timeout=options.timeout,
            connections=options.concurrency,
            key_variable=self._key_variable,
        )
        with Progress(self._title, source.rows, len(finished)) as progress:
            server = Server(transport, options.url, options.patience, progress.log)
            async with contextlib.aclosing(server):
                run = Run(work, server, admission, progress)
                with run.signals():
                    await server.connect()
                    manifest = self._manifest(source, server.description)
                    if output is not None:
                        before = read_manifest(output)
                        if before is not None:
                            check_same(output, before, manifest)
                        write_manifest(output, manifest)
                    await run.run()
        if output is not None:
            counts = {"finished": run.counts.finished, "failed": run.counts.failed}
            write_manifest(output, manifest.model_copy(update=counts))
        return run.counts


def errors_path(output: Path) -> Path:
    """Return the path of the file with the failed rows of `output`."""
    return output.with_name(output.name + ERRORS)


class _LineWriter:
    """Writes lines to a file that no later run continues."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name

    def append(self, line: bytes) -> None:
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=self._name) from error

    def tick(self) -> None:
        """Do nothing: no line is buffered."""
