"""The verb `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench(
    url: Annotated[
        str,
        typer.Option(help="grpc://host:port is Triton, http://host:port the gateway."),
    ] = "grpc://127.0.0.1:8001",
    model: Annotated[str | None, typer.Option(help="Another than the server's usual.")] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Requests at once; several loads: 1,8,32.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="New requests per second at random times; several: 1,2,4.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Of each load.")] = 64,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before, not counted.")] = 4,
    input_tokens: Annotated[str, typer.Option(help="Of a prompt: N or LOW-HIGH.")] = "128",
    output_tokens: Annotated[str, typer.Option(help="Of an answer: N or LOW-HIGH.")] = "64",
    slo: Annotated[
        str | None, typer.Option(help="ttft=SECONDS,itl=SECONDS,e2e=SECONDS: count what keeps it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of prompts, lengths and arrivals.")] = 1,
    generator: Annotated[
        str, typer.Option(help="builtin, or a path to perf_analyzer or aiperf.")
    ] = "builtin",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for JSON, Markdown and HTML.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A.json B.json", help="Instead: ratios.")
    ] = None,
) -> None:
    """Measure a running server: latencies, throughput, goodput."""
    from nemotron_bench.report import compare as comparison
    from nemotron_bench.report import markdown, read_report, write_reports
    from nemotron_bench.run import BenchSettings, run

    if compare is not None:
        typer.echo(comparison(*map(read_report, compare)))
        return
    settings = BenchSettings.parse(
        url=url,
        model=model,
        concurrency=concurrency,
        rate=rate,
        requests=requests,
        warmup=warmup,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        slo=slo,
        seed=seed,
        generator=generator,
    )
    report = run(settings)
    typer.echo(markdown(report))
    if output is not None:
        for path in write_reports(report, output):
            typer.echo(path)
    if any(level.errors for level in report.levels):
        raise typer.Exit(1)
