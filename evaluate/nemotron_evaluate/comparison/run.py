"""The run of a comparison: from the options to the report's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nemotron_core.errors import NemotronError
from nemotron_core.files import partial_path, write_atomically
from nemotron_evaluate.comparison.report import markdown
from nemotron_evaluate.comparison.result import Result, TokenTable, compare
from nemotron_evaluate.comparison.side import (
    UNREADABLE,
    Side,
    no_log_probs,
    read_scores,
    request_rows,
)
from nemotron_evaluate.comparison.texts import read_texts
from nemotron_evaluate.options import CompareOptions
from nemotron_evaluate.server import Server

FIRST, SECOND = "a", "b"
"""Folders of the two servers' results in the output."""
JSON, MARKDOWN, TOKENS = "report.json", "report.md", "tokens.npz"


def run(options: CompareOptions) -> Result | None:
    """Compare as the options say, and write the report. `None` if A was only saved.

    Raises `NemotronError` for options that do not fit together, and for what a server or a file
    does not allow. After an error the same call continues the run.
    """
    _check(options)
    if options.against is not None and options.output is not None:
        first = Side(options.against)
        rows = first.rows
        _ = first.manifest  # an incomplete run is refused before B computes anything
        second = Side(options.output / SECOND)
        _compute(second, options.url, rows, options, "B")
    elif options.save is not None:
        _compute(Side(options.save), options.url, None, options, "A")
        return None
    elif options.output is not None and options.other is not None:
        first, second = Side(options.output / FIRST), Side(options.output / SECOND)
        _compute(first, options.url, None, options, "A")
        _compute(second, options.other, first.rows, options, "B")
    else:
        raise AssertionError("the options were checked")
    result, tokens = compare(first, second, _alternatives(first))
    _write(options.output, result, tokens)
    return result


def check_limits(result: Result, options: CompareOptions) -> None:
    """Raise `NemotronError` if a value is beyond its limit."""
    if options.max_kl is not None and result.mean_kl.value > options.max_kl:
        raise NemotronError(
            f"the mean KL is at least {result.mean_kl.value:.3g} nats, more than {options.max_kl}",
            where="--max-kl",
        )
    if options.min_top1 is not None and result.top1.value < options.min_top1:
        raise NemotronError(
            f"only {result.top1.value:.4f} of the most probable tokens are equal, "
            f"less than {options.min_top1}",
            where="--min-top1",
        )


def _check(options: CompareOptions) -> None:
    limits = options.max_kl is not None or options.min_top1 is not None
    wrong = [
        (
            options.save is not None and options.against is not None,
            "--save and --against exclude each other",
            "save A first, then compare B with --against",
        ),
        (
            (options.other is not None) + (options.save is not None)
            + (options.against is not None) != 1,
            "there is nothing to compare with",
            "give a second URL, --against FOLDER, or --save FOLDER to compare later",
        ),
        (
            options.save is None and options.output is None,
            "there is no folder for the report",
            "name one with -o",
        ),
        (
            options.against is None and options.texts is None,
            "there are no texts",
            "name a file with --texts",
        ),
        (
            options.against is not None and options.texts is not None,
            "the saved run has its own texts",
            "leave --texts out",
        ),
        (options.save is not None and limits, "--save compares nothing", "leave the limits out"),
    ]  # fmt: skip
    for is_wrong, what, remedy in wrong:
        if is_wrong:
            raise NemotronError(what, where="compare", remedy=remedy)


def _compute(side: Side, url: str, rows: str | None, options: CompareOptions, title: str) -> None:
    """Have a server compute the rows; without rows they are made of the texts."""
    with Server(url) as server:
        model = server.identity()["model"]
        if rows is None and options.texts is not None:
            rows = request_rows(read_texts(options.texts, server, options.length), options)
        if rows is None or model is None:
            raise AssertionError("the options were checked, and every model has a name")
        _probe(server, model, rows)
    side.run(url, model, rows, options, title)


def _probe(server: Server, model: str, rows: str) -> None:
    """Raise `NemotronError` if the server does not score prompts, before it scores all of them."""
    body = _first_body(rows)
    ids = body["prompt"][:2]
    choice = server.complete(body | {"model": model, "prompt": ids})
    try:
        read_scores(ids, choice["prompt_logprobs"])
    except UNREADABLE as error:
        raise no_log_probs("a prompt", server.url) from error


def _first_body(rows: str) -> dict[str, Any]:
    """Return the request that scores the first text."""
    return dict(json.loads(rows.partition("\n")[0])["body"])


def _alternatives(side: Side) -> int:
    """Return the number of alternatives with which a saved run was made."""
    return int(_first_body(side.rows)["prompt_logprobs"])


def _write(folder: Path, result: Result, tokens: TokenTable) -> None:
    partial = partial_path(folder / TOKENS)
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **{name: np.asarray(v) for name, v in vars(tokens).items()})
        partial.replace(folder / TOKENS)
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=folder) from error
    write_atomically(folder / MARKDOWN, markdown(result))
    write_atomically(folder / JSON, result.model_dump_json(indent=2) + "\n")
