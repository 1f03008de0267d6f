"""The options of the verbs `compare`, `eval` and `redteam`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nemotron_data.options import MaxConcurrency, Patience


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `nemotron compare`."""

    url: Annotated[
        str,
        typer.Argument(metavar="A", help="URL of the first server; with --against, of the second."),
    ]
    other: Annotated[
        str | None, typer.Argument(metavar="[B]", help="URL of the second server.")
    ] = None
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Lines with text, messages or ids (token ids)."),
    ] = None
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the report and all results.")
    ] = None
    save: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep what A computes, for a later --against."),
    ] = None
    against: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Compare with what --save has kept.")
    ] = None
    length: Annotated[
        int, typer.Option(min=2, help="Largest number of tokens taken from each text.")
    ] = 2048
    alternatives: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of alternatives at each token.")
    ] = 20
    answer_tokens: Annotated[
        int, typer.Option(min=0, help="Length of the greedy answers; 0 leaves them out.")
    ] = 64
    max_kl: Annotated[
        float | None, typer.Option(min=0, help="Fail if the mean KL in nats is larger.")
    ] = None
    min_top1: Annotated[
        float | None, typer.Option(min=0, max=1, help="Fail if fewer of the top tokens are equal.")
    ] = None
    concurrency: MaxConcurrency = 16
    patience: Patience = 600.0


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of `nemotron eval`."""

    suite: Annotated[
        str | None,
        typer.Argument(
            metavar="[SUITE.yaml | card | install]",
            help="A file that names benchmarks, the model card's, or the word install.",
        ),
    ] = None
    harness: Annotated[
        str | None, typer.Argument(metavar="[HARNESS]", help="With install: what to install.")
    ] = None
    url: Annotated[
        str | None,
        typer.Option(help="URL of the server. Without it, the report is made from a run's folder."),
    ] = None
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="RUN", help="Folder of the run.")
    ] = None
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Compare with another run on the same items."),
    ] = None
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A benchmark of the suite; repeatable.")
    ] = None
    skip: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A benchmark to leave out; repeatable.")
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take only the first items of each task.")
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="NAME.jsonl for each benchmark; nothing is fetched."),
    ] = None
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Hugging Face tokenizer in place of the server's."),
    ] = None
    concurrency: MaxConcurrency = 16
    batch: Annotated[
        int, typer.Option(min=1, help="Prompts in one request, where answers are compared.")
    ] = 1
    timeout: Annotated[int, typer.Option(min=1, help="Seconds for one request.")] = 3600
    judge_url: Annotated[
        str | None, typer.Option(help="URL of the server with the model that judges MT-Bench.")
    ] = None
    judge_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name there; the card's judge is "
                                 "gpt-4-0125-preview.")
    ] = None  # fmt: skip
    environments: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the harnesses are installed.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class RedteamOptions:
    """Options of `nemotron redteam`."""

    url: Annotated[str, typer.Argument(help="URL of the server.")]
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="RUN", help="Folder of the run.")
    ]
    probe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One of garak's probes or modules of them; repeatable."),
    ] = None
    minutes: Annotated[float, typer.Option(min=0.1, help="Longest time of the run.")] = 60.0
    prompts: Annotated[
        int, typer.Option(min=1, help="Prompts of each probe, where a probe can have fewer.")
    ] = 256
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256
    concurrency: MaxConcurrency = 16
    environments: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the harnesses are installed.")
    ] = None
