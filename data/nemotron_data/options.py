"""The options of the verbs `batch` and `synthesize`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nemotron_data.transport.protocol import MAX_TOKENS, MODEL

Value = str | int | float | bool | None
"""A value of a request body that a run sets for its rows."""

MaxConcurrency = Annotated[
    int, typer.Option(min=1, max=4096, help="Largest number of requests at once.")
]
Patience = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for an unreachable or overloaded server.")
]


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Options of `nemotron batch`. `source` and `output` are paths or `-`."""

    source: Annotated[
        str, typer.Argument(metavar="IN.jsonl", help="Input file, may be .gz; - is standard input.")
    ]
    output: Annotated[
        str, typer.Argument(metavar="OUT.jsonl", help="Results, may be .gz; - is standard output.")
    ]
    url: Annotated[
        str,
        typer.Option(
            envvar="NEMOTRON_BATCH_URL",
            help="http(s):// URL of an OpenAI-compatible server, or grpc:// URL of Triton.",
        ),
    ] = "http://127.0.0.1:1424"
    model: Annotated[str | None, typer.Option(help="Model of rows that do not name one.")] = None
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer in tokens, for rows that do not set it.")
    ] = MAX_TOKENS
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature, unless a row sets it; 0 is greedy.")
    ] = 0.0
    seed: Annotated[
        int | None, typer.Option(help="Seed of the run; each row's own seed is derived from it.")
    ] = 0
    """`None` means that rows get no seed."""
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Sort the results like the rows at the end.")
    ] = False
    concurrency: MaxConcurrency = 256
    """Fewer requests are sent if more of them would only wait for each other."""
    requests_per_minute: Annotated[
        float | None, typer.Option(min=1, help="Largest number of requests per minute.")
    ] = None
    tokens_per_minute: Annotated[
        float | None, typer.Option(min=1, help="Most prompt and answer tokens per minute.")
    ] = None
    attempts: Annotated[
        int, typer.Option(min=1, help="Number of attempts for a row that fails on its own.")
    ] = 5
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Longest time in seconds for one request.")
    ] = 1800.0
    patience: Patience = 600.0

    @property
    def defaults(self) -> Mapping[str, Value]:
        """Keys of a request body for rows that do not set them."""
        sampling = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return {"model": self.model or MODEL, **sampling}


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """Options of `nemotron synthesize`. Only `recipe` has an effect on the data."""

    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="What to generate, score and keep.")
    ]
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the data and the files of all steps.")
    ]
    concurrency: MaxConcurrency = 256
    patience: Patience = 600.0
    skip_failed: Annotated[
        bool, typer.Option("--skip-failed", help="Continue without rows that fail permanently.")
    ] = False
