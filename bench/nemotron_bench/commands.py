"""The verb `bench`."""

from __future__ import annotations

import typer

from nemotron_bench.settings import BenchSettings
from nemotron_core.command_options import takes


@takes(BenchSettings)
def bench(settings: BenchSettings) -> None:
    """Measure a running server: latencies, throughput, goodput."""
    from nemotron_bench.report import (
        compare,
        markdown,
        prepare_folder,
        read_report,
        write_reports,
    )
    from nemotron_bench.run import run

    if settings.compare is not None:
        typer.echo(compare(*map(read_report, settings.compare)))
        return
    if settings.output is not None:
        prepare_folder(settings.output)
    report = run(settings)
    typer.echo(report.model_dump_json(indent=1) if settings.as_json else markdown(report))
    if settings.output is not None:
        for path in write_reports(report, settings.output):
            typer.echo(path, err=settings.as_json)
    if any(level.errors for level in report.levels):
        raise typer.Exit(1)
