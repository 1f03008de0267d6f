"""The options of the verbs `batch` and `synthesize`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nemotron_core.errors import NemotronError

MAX_TOKENS = 1024
"""Default of `max_tokens` for rows that do not set it."""
MODEL = "nemotron-4-340b-instruct"
"""Name of the model at a server that does not say which one it has."""
DEFAULT_URL = "http://127.0.0.1:1424"

Value = str | int | float | bool | None
"""A value of a request body that a run sets for its rows."""


class Format(str, enum.Enum):
    """A format of an input, by the name that `--input-format` takes."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    TEXT = "text"
    PARQUET = "parquet"
    ARROW = "arrow"


class Runner(str, enum.Enum):
    """What runs the shards of a corpus."""

    LOCAL = "local"
    RAY = "ray"


ShardOption = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Only shard I of N, from 0, with an output of its own."),
]
RunnerOption = Annotated[
    Runner, typer.Option(help="ray runs all --shards as tasks of a Ray cluster; local only this.")
]
ShardsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Number of shards for --runner ray.")
]
MaxConcurrency = Annotated[
    int, typer.Option(min=1, max=4096, help="Largest number of requests at once.")
]
Patience = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for an unreachable or overloaded server.")
]


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Options of `nemotron batch`."""

    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="JSONL, JSON, CSV, TSV, text, Parquet or Arrow, compressed or not; a folder, "
            "a quoted pattern of files, or - for standard input.",
        ),
    ]
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT",
            help="OUT.jsonl, .jsonl.gz, .jsonl.zst or .parquet; a folder OUT/ for a dataset of "
            "several files with a card; - for standard output.",
        ),
    ]
    url: Annotated[
        list[str] | None,
        typer.Option(
            envvar="NEMOTRON_BATCH_URL",
            help="http(s):// URL of an OpenAI-compatible server, or grpc:// URL of Triton. May be "
            "repeated for several servers; @FILE has one per line. [default: http://127.0.0.1:1424]",
        ),
    ] = None
    allow_different_engines: Annotated[
        bool, typer.Option("--allow-different-engines", help="Mix servers with other engines.")
    ] = False

    input_format: Annotated[
        Format | None, typer.Option(help="Format of the input, if it is not recognised.")
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(help="Template of the user's message: 'Translate: {{ column }}'."),
    ] = None
    prompt_column: Annotated[
        str | None, typer.Option(help="Column that holds the user's message.")
    ] = None
    system: Annotated[
        str | None, typer.Option(help="Template of the system message, with one of these two.")
    ] = None
    id_column: Annotated[str | None, typer.Option(help="Column with each row's custom_id.")] = None
    shard: ShardOption = None
    runner: RunnerOption = Runner.LOCAL
    shards: ShardsOption = None

    model: Annotated[
        str | None,
        typer.Option(help="Model of rows that do not name one, instead of the server's first."),
    ] = None
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer in tokens, for rows that do not set it.")
    ] = MAX_TOKENS
    no_max_tokens: Annotated[
        bool, typer.Option("--no-max-tokens", help="Leave the length of answers to the server.")
    ] = False
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature, unless a row sets it; 0 is greedy.")
    ] = 0.0
    seed: Annotated[
        int | None, typer.Option(help="Seed of the run; each row's own seed is derived from it.")
    ] = 0
    """`None` means that rows get no seed."""
    no_seed: Annotated[bool, typer.Option("--no-seed", help="Send rows without a seed.")] = False

    accept: Annotated[
        list[str] | None,
        typer.Option(
            help="Rule that answers must fulfil, may be repeated: any, finish_reason=A,B, "
            "min_length=N, regex=R, json, schema=FILE, python=MODULE:FUNCTION. Unless any is given,"
            " empty answers and chats that were cut off fail."
        ),
    ] = None
    attempts: Annotated[
        int,
        typer.Option(
            min=1, help="Number of attempts for a row that fails or whose answer is not accepted."
        ),
    ] = 5

    ordered: Annotated[
        bool, typer.Option("--ordered", help="Sort the results like the rows at the end.")
    ] = False
    rows_per_file: Annotated[
        int, typer.Option(min=1, help="Rows in each file of an output folder.")
    ] = 100_000

    concurrency: MaxConcurrency = 256
    """Fewer requests are sent if more of them would only wait for each other."""
    requests_per_minute: Annotated[
        float | None, typer.Option(min=1, help="Largest number of requests per minute.")
    ] = None
    tokens_per_minute: Annotated[
        float | None, typer.Option(min=1, help="Most prompt and answer tokens per minute.")
    ] = None
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Longest time in seconds for one request.")
    ] = 1800.0
    patience: Patience = 600.0

    price_in: Annotated[
        float | None, typer.Option(min=0, help="Price of a million tokens of prompts.")
    ] = None
    price_out: Annotated[
        float | None, typer.Option(min=0, help="Price of a million tokens of answers.")
    ] = None
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port for Prometheus, on this machine.")
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Send nothing: show rows, tokens, first request and cost."),
    ] = False

    @property
    def defaults(self) -> Mapping[str, Value]:
        """Keys of a request body for rows that do not set them. See `Requests` for the model."""
        defaults: dict[str, Value] = {"model": self.model}
        if not self.no_max_tokens:
            defaults["max_tokens"] = self.max_tokens
        return defaults | {"temperature": self.temperature}

    @property
    def row_seed(self) -> int | None:
        """Seed of the run, or `None` if rows get no seed."""
        return None if self.no_seed else self.seed


def check_runner(options: BatchOptions | SynthesisOptions) -> None:
    """Raise `NemotronError` if the options about shards do not fit together."""
    if options.runner is Runner.LOCAL and options.shards is not None:
        raise NemotronError("only for --runner ray", where="--shards", remedy="or give --shard I/N")
    if options.runner is Runner.RAY and options.shards is None:
        raise NemotronError(
            "the number of shards is missing",
            where="--runner ray",
            remedy="add --shards N; it is a part of the outputs' names, so keep it",
        )
    if options.runner is Runner.RAY and options.shard is not None:
        raise NemotronError("Ray runs all shards", where="--shard", remedy="leave it out")


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """Options of `nemotron synthesize`. What is generated is a matter of the recipe alone."""

    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="RECIPE.yaml, or the name of a shipped recipe.")
    ]
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for the data and the files of all steps.")
    ]
    url: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=URL", help="URL of a model in the recipe, may be repeated."),
    ] = None
    rows: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP=FILE", help="Rows of a step, in place of the recipe's."),
    ] = None
    shard: ShardOption = None
    """Of the rows of the recipe's first step."""
    runner: RunnerOption = Runner.LOCAL
    shards: ShardsOption = None
    preview: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N rows, and show them.")
    ] = None
    """The run is in a folder of its own inside `output`."""
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html: counts, plots and samples.")
    ] = False
    concurrency: MaxConcurrency = 256
    patience: Patience = 600.0
    skip_failed: Annotated[
        bool, typer.Option("--skip-failed", help="Continue without rows that fail permanently.")
    ] = False
    allow_different_engines: Annotated[
        bool, typer.Option("--allow-different-engines", help="Mix servers with other engines.")
    ] = False
