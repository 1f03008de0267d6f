"""The options of the verb `compare`."""

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
