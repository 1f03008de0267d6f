"""A batch: input, output and server brought together, checked, and run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_data.batch.admission import Admission
from nemotron_data.batch.manifest import Manifest, Value, check_same, read_manifest, write_manifest
from nemotron_data.batch.progress import Progress
from nemotron_data.batch.results import ResultFile
from nemotron_data.batch.run import Counts, Results, Run, Work
from nemotron_data.batch.server import Server
from nemotron_data.rows import STREAM, Source
from nemotron_data.transport.protocol import API_KEY, MAX_TOKENS, MODEL, open_transport

ERRORS = ".errors.jsonl"


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """One run. `source` and `output` are paths or `-`."""

    source: str
    output: str
    url: str
    defaults: Mapping[str, Value] = field(
        default_factory=lambda: {"model": MODEL, "max_tokens": MAX_TOKENS, "temperature": 0.0}
    )
    """Keys of a body for rows that do not have them."""
    seed: int | None = 0
    """Of the run: each row's own is derived from it. None sends none."""
    ordered: bool = False
    concurrency: int = 256
    """The most requests at once."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    attempts: int = 5
    """For failures that may be the row's own."""
    timeout: float = 1800.0
    """Seconds for one request."""
    patience: float = 600.0
    """Seconds without any answer before the server is given up."""
    key_variable: str = API_KEY
    """Of the environment."""
    title: str = "batch"
    """Before the progress."""


def run_batch(options: BatchOptions) -> Counts:
    """Ask every row that has no result yet.

    A row that fails for good is in OUTPUT.errors.jsonl with its reason, and asked again by the next
    run. NemotronError if the run cannot go on; Interrupted after a signal. Either way the same
    options continue it.
    """
    with contextlib.closing(Source(options.source)) as source:
        if options.output == STREAM:
            if options.ordered:
                raise NemotronError(
                    "standard output cannot be sorted", where="--ordered", remedy="name a file"
                )
            stdout = _Lines(sys.stdout.fileno(), "standard output")
            return asyncio.run(_run(options, source, set(), stdout, stdout))
        return _to_file(options, source, Path(options.output))


def _to_file(options: BatchOptions, source: Source, output: Path) -> Counts:
    errors = errors_path(output)
    with ResultFile(output) as results:
        before = read_manifest(output)
        if before is None and not results.is_empty:
            raise NemotronError(
                "the output holds something, but has no manifest",
                where=output,
                remedy="name another output or remove it",
            )
        if before is not None:  # without a server already, if that is possible
            check_same(output, before, _manifest(options, source, before.server))
        finished = results.load()
        if len(finished) == source.rows:  # no server is needed
            for _row in source.read() if options.ordered else ():
                pass
            if options.ordered:
                results.sort(source.numbers)
            return Counts(finished=len(finished))
        try:
            descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=errors) from error
        try:
            failures = _Lines(descriptor, str(errors))
            counts = asyncio.run(_run(options, source, finished, results, failures, output))
        finally:
            os.close(descriptor)
        if options.ordered:
            results.sort(source.numbers)
    if not counts.failed:
        errors.unlink()
    return counts


def errors_path(output: Path) -> Path:
    """Where the rows are that have failed."""
    return output.with_name(output.name + ERRORS)


def _manifest(options: BatchOptions, source: Source, server: Mapping[str, Value]) -> Manifest:
    return Manifest(
        source=source.name,
        source_sha256=source.sha256,
        seed=options.seed,
        defaults=dict(options.defaults),
        server=dict(server),
        rows=source.rows,
    )


async def _run(
    options: BatchOptions,
    source: Source,
    finished: set[int],
    results: Results,
    failures: Results,
    output: Path | None = None,
) -> Counts:
    work = Work(
        source, finished, options.defaults, options.seed, options.attempts, results, failures
    )
    most = options.concurrency
    admission = Admission(most, options.requests_per_minute, options.tokens_per_minute)
    transport = open_transport(
        options.url, timeout=options.timeout, most=most, key_variable=options.key_variable
    )
    with Progress(options.title, source.rows, len(finished)) as progress:
        server = Server(transport, options.url, options.patience, progress.tell)
        async with contextlib.aclosing(server):
            run = Run(work, server, admission, progress)
            with run.signals():
                await server.find()
                manifest = _manifest(options, source, server.description)
                if output is not None:
                    before = read_manifest(output)
                    if before is not None:
                        check_same(output, before, manifest)
                    write_manifest(output, manifest)
                await run.run()
    if output is not None:
        ended = {"finished": run.counts.finished, "failed": run.counts.failed}
        write_manifest(output, manifest.model_copy(update=ended))
    return run.counts


class _Lines:
    """Lines for a file that nothing continues from."""

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
        """Nothing waits."""
