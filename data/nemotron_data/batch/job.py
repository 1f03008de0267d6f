"""A batch job: check that input, output and server fit together, then run what is left."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from nemotron_core.errors import NemotronError
from nemotron_data.batch.accept import Acceptance
from nemotron_data.batch.dry_run import dry_run
from nemotron_data.batch.export import export, is_exported
from nemotron_data.batch.host import Host
from nemotron_data.batch.line_writer import ErrorFile, LineWriter
from nemotron_data.batch.manifest import Manifest, check_same, read_manifest, write_manifest
from nemotron_data.batch.metrics import serve_metrics
from nemotron_data.batch.pace import Concurrency
from nemotron_data.batch.plan import Plan
from nemotron_data.batch.pool import Pool
from nemotron_data.batch.progress import Progress
from nemotron_data.batch.rates import Rates
from nemotron_data.batch.request import Requests
from nemotron_data.batch.results import KEY, Keys, ResultFile
from nemotron_data.batch.run import Run
from nemotron_data.batch.server import Server
from nemotron_data.batch.statistics import Prices, Statistics, summary_table
from nemotron_data.batch.target import Target, target_of
from nemotron_data.batch.work import Counts, Results, Work
from nemotron_data.options import DEFAULT_URL, BatchOptions, Value
from nemotron_data.rows.parser import RowParser
from nemotron_data.rows.row import BadRow
from nemotron_data.rows.shard import parse_shard
from nemotron_data.rows.source import STREAM, Source
from nemotron_data.transport.factory import server_urls


class Job:
    """One batch.

    `defaults` are keys of a request body for rows that do not set them; the options `model`,
    `max_tokens` and `temperature` are not read. `host` is the program around the job. `title`
    stands in front of the progress. `acceptance` takes the place of the option `accept`. An input
    of which no row has a result in the output is refused, unless `may_replace_all` is true. Raises
    `NemotronError` if an option is wrong.
    """

    def __init__(
        self,
        options: BatchOptions,
        defaults: Mapping[str, Value],
        *,
        host: Host | None = None,
        title: str = "batch",
        acceptance: Acceptance | None = None,
        may_replace_all: bool = False,
    ) -> None:
        self._shard = None if options.shard is None else parse_shard(options.shard)
        if self._shard is not None and options.output != STREAM:
            options = replace(options, output=self._shard.output(options.output))
        self._options = options
        self._host = host or Host()
        self._title = title
        self._urls = server_urls(options.url or [DEFAULT_URL])
        self._acceptance = acceptance or Acceptance(options.accept or ())
        self._may_replace_all = may_replace_all
        self._requests = Requests(defaults, options.row_seed)
        self._prices = Prices(options.price_in, options.price_out)
        if options.prompt is not None and options.prompt_column is not None:
            raise NemotronError("give one of the two", where="--prompt and --prompt-column")
        try:
            self._parser = RowParser(
                options.prompt, options.prompt_column, options.system, options.id_column
            )
        except ValueError as error:
            raise NemotronError(str(error), where="--prompt or --system") from error

    @property
    def output(self) -> str:
        """The name of the output, with the number of its shard."""
        return self._options.output

    def run(self) -> Counts:
        """Send every row that has no result yet.

        A row that fails permanently is stored beside the output with the reason, and the next run
        sends it again. Raises `NemotronError` if the run cannot continue, and `Interrupted` after a
        signal. In both cases a job with the same options continues the run.
        """
        options = self._options
        target = None if options.output == STREAM else target_of(options.output)
        if target is None and options.ordered:
            raise NemotronError(
                "standard output cannot be sorted", where="--ordered", remedy="name a file"
            )
        with (
            contextlib.closing(Source(options.source, options.input_format)) as source,
            self._host.progress(self._title) as progress,
        ):
            if options.dry_run:
                return self._dry_run(source, target, progress)
            if target is not None:
                return self._write_file(source, target, progress)
            plan = self._plan(source, None, progress)
            stdout = LineWriter(sys.stdout.fileno(), "standard output")
            return asyncio.run(self._send_rows(source, plan, stdout, stdout, progress))

    def _dry_run(self, source: Source, target: Target | None, progress: Progress) -> Counts:
        with contextlib.ExitStack() as stack:
            results = before = None
            if target is not None and target.results.exists():
                results = stack.enter_context(ResultFile(target.results))
                before = read_manifest(target.manifest)
            plan = self._plan(source, results, progress)
            speed = before.last_run.rows_per_second if before and before.last_run else None
            dry_run(plan, self._requests, self._prices, self._urls, progress, speed)
        return Counts(finished=plan.counts.kept)

    def _write_file(self, source: Source, target: Target, progress: Progress) -> Counts:
        target.make_folder()
        with ResultFile(target.results) as results:
            before = read_manifest(target.manifest)
            if before is None and not results.is_empty:
                raise NemotronError(
                    "the output holds something, but has no manifest",
                    where=target.results,
                    remedy="name another output or remove it",
                )
            plan = self._plan(source, results, progress)
            if before is not None and plan.counts.kept:  # what needs no server is compared first
                check_same(target.path, before, self._manifest(source, None, before.server))
            if plan.counts.kept < plan.counts.rows:
                failures = ErrorFile(target.errors)
                with contextlib.closing(failures):
                    counts = asyncio.run(
                        self._send_rows(source, plan, results, failures, progress, target)
                    )
            else:  # no server is needed
                counts = Counts(finished=plan.counts.kept)
                progress.begin(plan.counts.rows, plan.counts.kept)
                progress.log("every row has its result, so nothing is sent")
                if len(plan.stale):
                    results.move(plan.stale, target.replaced)
                manifest = before or self._manifest(source, plan, {})
                self._finish_manifest(target, manifest, plan, counts)
                target.remove_errors()
            if self._options.ordered or target.is_exported:
                results.sync()
            if self._options.ordered:
                results.sort(plan.positions)
            if target.is_exported and (
                plan.counts.kept < plan.counts.rows or len(plan.stale) or not is_exported(target)
            ):
                manifest = cast("Manifest", read_manifest(target.manifest))
                export(results.lines(), target, manifest, self._options.rows_per_file)
        return counts

    def _plan(self, source: Source, results: ResultFile | None, progress: Progress) -> Plan:
        found: Keys = np.empty(0, KEY)
        custom_ids: Callable[[Keys], list[str]] = lambda _keys: []  # noqa: E731
        if results is not None:
            found = results.load(lambda count: progress.read(results.path.name, count))
            custom_ids = results.custom_ids
        report = functools.partial(progress.read, source.name)
        plan = Plan(source, self._parser, found, custom_ids, report, self._shard)
        counts = plan.counts
        if counts.rows and counts.bad == counts.rows and self._shard is None:
            first = next(plan.rows())
            assert isinstance(first, BadRow)
            where = f"{source.name}:{first.number}"
            what = first.reason
            if counts.rows > 1:
                what = f"none of the {counts.rows} rows is a request: {what}"
            raise NemotronError(what, where=where, remedy=first.remedy)
        if len(found) and not counts.kept and not counts.changed and not self._may_replace_all:
            raise NemotronError(
                f"none of the {len(found)} results belongs to a row of the input",
                where=self._options.output,
                remedy="name another output, or give the input that it was begun with",
            )
        if len(found) and (counts.changed or counts.removed or counts.new):
            text = (
                f"{counts.kept} rows kept, {counts.new} are new or failed, {counts.changed} changed"
            )
            if len(plan.stale):
                text += (
                    f", {counts.removed} removed: {len(plan.stale)} results go to "
                    f"{target_of(self._options.output).replaced.name}"
                )
            progress.log(text)
        if self._parser.metadata_columns:
            names = ", ".join(self._parser.metadata_columns)
            progress.log(f"not sent, but kept as metadata: {names}")
        return plan

    def _manifest(self, source: Source, plan: Plan | None, server: Mapping[str, Value]) -> Manifest:
        return Manifest(
            source=source.name,
            rows_sha256="" if plan is None else hashlib.sha256(plan.keys).hexdigest(),
            seed=self._requests.seed,
            defaults=dict(self._requests.at_server(server).defaults),
            server=dict(server),
            rows=0 if plan is None else plan.counts.rows,
        )

    async def _send_rows(
        self,
        source: Source,
        plan: Plan,
        results: Results,
        failures: Results,
        progress: Progress,
        target: Target | None = None,
    ) -> Counts:
        options = self._options
        work = Work(
            plan.rows(),
            plan.counts.rows,
            self._requests,
            self._acceptance,
            options.attempts,
            results,
            failures,
            self._host.failure_line,
        )
        before = None if target is None else read_manifest(target.manifest)
        pool = self._pool(progress, {} if before is None else before.concurrency)
        rates = Rates(options.requests_per_minute, options.tokens_per_minute)
        statistics = Statistics(self._prices)
        run = Run(work, pool, rates, progress, statistics, finished=plan.counts.kept)
        async with contextlib.aclosing(pool):
            with run.ended_by(self._host.interruption()):
                await pool.connect()
                self._requests = work.requests = self._requests.at_server(pool.description)
                manifest = self._manifest(source, plan, pool.description)
                if target is not None:
                    if before is not None and plan.counts.kept:
                        are_engines_compared = not options.allow_different_engines
                        check_same(target.path, before, manifest, are_engines_compared)
                    if len(plan.stale):
                        cast("ResultFile", results).move(plan.stale, target.replaced)
                    write_manifest(target.manifest, manifest)
                    target.remove_errors()
                progress.begin(plan.counts.rows, plan.counts.kept)
                is_complete = False
                try:
                    with serve_metrics(options.metrics_port, statistics, pool):
                        await run.run()
                    is_complete = True
                finally:
                    summary = statistics.summary()
                    limits = {
                        server.url: server.concurrency.proven_limit for server in pool.servers
                    }
                    update = {"concurrency": limits, "last_run": summary}
                    manifest = manifest.model_copy(update=update)
                    with (
                        contextlib.nullcontext()
                        if is_complete
                        else contextlib.suppress(NemotronError)
                    ):
                        self._finish_manifest(
                            target, manifest, plan, run.counts if is_complete else None
                        )
                    rows, counts = plan.counts.rows, run.counts
                    table = summary_table(summary, counts.finished, counts.failed, rows)
                    progress.print_table(self._title, table)
        return run.counts

    def _finish_manifest(
        self, target: Target | None, manifest: Manifest, plan: Plan, counts: Counts | None
    ) -> None:
        if target is None:
            return
        update: dict[str, object] = {"rows": plan.counts.rows}
        update["rows_sha256"] = hashlib.sha256(plan.keys).hexdigest()
        if counts is not None:
            update |= {"finished": counts.finished, "failed": counts.failed}
        write_manifest(target.manifest, manifest.model_copy(update=update))

    def _pool(self, progress: Progress, known: Mapping[str, int]) -> Pool:
        options = self._options
        servers = [
            Server(
                url,
                self._host.open_transport(url, options.timeout),
                Concurrency(options.concurrency, known=known.get(url)),
                progress.log,
            )
            for url in self._urls
        ]
        return Pool(
            servers,
            options.patience,
            progress.log,
            allow_differences=options.allow_different_engines,
        )
