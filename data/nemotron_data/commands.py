"""The verbs `batch` and `synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Concurrency = Annotated[
    int, typer.Option(min=1, max=4096, help="The most requests at once; fewer if they wait.")
]


def batch(
    source: Annotated[
        str, typer.Argument(metavar="IN.jsonl", help="Rows, also as .gz; -: standard input.")
    ],
    output: Annotated[
        str, typer.Argument(metavar="OUT.jsonl", help="Results, also as .gz; -: standard output.")
    ],
    url: Annotated[
        str,
        typer.Option(
            envvar="NEMOTRON_BATCH_URL",
            help="http(s):// of an OpenAI-compatible server, or grpc:// of Triton.",
        ),
    ] = "http://127.0.0.1:1424",
    model: Annotated[str | None, typer.Option(help="For rows that name none.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="For rows that do not say.")] = 1024,
    temperature: Annotated[
        float, typer.Option(min=0, help="For rows that do not say; 0 is greedy.")
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(help="Of the run; each row gets one of its own from it.")
    ] = 0,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Sort the results like the rows, at the end.")
    ] = False,
    concurrency: Concurrency = 256,
    requests_per_minute: Annotated[
        float | None, typer.Option(min=1, help="At most so many.")
    ] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(min=1, help="Of prompts and answers; at most so many.")
    ] = None,
    attempts: Annotated[int, typer.Option(min=1, help="Tries of a row that fails on its own.")] = 5,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 1800.0,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a server that is away or full.")
    ] = 600.0,
) -> None:
    """Answer every row of a file, each exactly once; the same command again goes on.

    The server's API key is taken from NEMOTRON_API_KEY.
    """
    from nemotron_core.errors import NemotronError
    from nemotron_data.batch.job import BatchOptions, errors_path, run_batch
    from nemotron_data.batch.run import Interrupted
    from nemotron_data.rows import STREAM
    from nemotron_data.transport.protocol import MODEL

    options = BatchOptions(
        source=source,
        output=output,
        url=url,
        defaults={
            "model": model or MODEL,
            "max_tokens": max_tokens,
            "temperature": temperature,
        },
        seed=seed,
        ordered=ordered,
        concurrency=concurrency,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        attempts=attempts,
        timeout=timeout,
        patience=patience,
    )
    try:
        counts = run_batch(options)
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    if counts.failed:
        raise NemotronError(
            f"{counts.failed} of {counts.failed + counts.finished} rows failed",
            where="standard output" if output == STREAM else errors_path(Path(output)),
            remedy="each is there with its reason; the same command tries them again",
        )


def synthesize(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="What to generate, score and keep.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A folder for the data and all steps.")
    ],
    concurrency: Concurrency = 256,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a server that is away or full.")
    ] = 600.0,
    skip_failed: Annotated[
        bool, typer.Option("--skip-failed", help="Go on without rows that fail for good.")
    ] = False,
) -> None:
    """Make training data: generate, score, keep; the same command again goes on."""
    from nemotron_data.batch.run import Interrupted
    from nemotron_data.synthesis.synthesize import SynthesisOptions
    from nemotron_data.synthesis.synthesize import synthesize as run

    options = SynthesisOptions(concurrency=concurrency, patience=patience, skip_failed=skip_failed)
    try:
        report = run(recipe, output, options)
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    typer.echo(report.model_dump_json(indent=2))
