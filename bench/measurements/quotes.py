"""Numbers of records that the prose of pages quotes, outside the tables made from records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from bench.measurements.machine import ROOT
from bench.measurements.records import Record
from bench.measurements.tables import over_best_peer

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(frozen=True)
class Quote:
    """A passage and the numbers that it quotes, in the order in which it has them."""

    page: str
    """Path in the repository."""
    anchor: str
    """Text in the passage, which is one row of a table, or else one paragraph."""
    numbers: Callable[[], Sequence[str]]
    """The numbers from the records, formatted as the page has them."""


def missing_numbers(text: str, quote: Quote) -> list[str]:
    """Return the first number that a page's text does not quote in its place, or an empty list.

    The passage may have other numbers before, between and after the quoted ones, and has equal
    neighbours only once ("0.96 with 8 and with 32").
    """
    present = iter(NUMBER.findall(passage(text, quote.anchor)))
    numbers = (number for number, _ in groupby(quote.numbers()))
    return next(([number] for number in numbers if number not in present), [])


def passage(text: str, anchor: str) -> str:
    """Return the row of a table or the paragraph that contains `anchor`.

    Raises `ValueError` if not exactly one does.
    """
    paragraphs = [part for part in text.split("\n\n") if not part.startswith("|")]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    (match,) = (part for part in [*paragraphs, *rows] if anchor in part)
    return match


def _speed_of_the_cpu_engine() -> Iterator[str]:
    for name in ("cpu_peers", "cpu_peers_zen4"):
        engines = Record.read(name).results["engines"]
        for load in engines["openvino"]["tokens_per_second"]:
            yield f"{over_best_peer(engines, load):.2f}"
    yield from _fractions_of_the_limit()


def _fractions_of_the_limit() -> Iterator[str]:
    for name in ("cpu_peers", "cpu_peers_zen4"):
        fractions = Record.read(name).results["openvino_over_limit"]
        yield from (f"{fractions[key]:.2f}" for key in ("median", "min", "max"))


def _load_over_perf_analyzer() -> Iterator[str]:
    rows = Record.read("perf_analyzer_check").results["rows"].values()
    yield from (f"{row['requests per second']['ratio']:.2f}" for row in rows)


def _conversion() -> Iterator[str]:
    largest = max(row["bytes"] for row in Record.read("convert_scaling").results["rows"])
    yield f"{largest / 1e9:.0f}"
    yield f"{Record.read('convert_speed').results['peak_rss'] / 1e6:.0f}"


def _exact_answers(dtype: str) -> Iterator[str]:
    (row,) = (r for r in Record.read("fp8_accuracy").results["rows"] if r["dtype"] == dtype)
    yield from (str(row["exact_answers"]), str(row["answers"]))


def _stress() -> Iterator[str]:
    record = Record.read("stress")
    yield str(record.arguments["streams"])
    outcomes = record.results["outcomes"]
    yield from (f"{outcomes[name]:,}" for name in ("answered", "cancelled", "hung up", "refused"))
    yield from (f"{value:.0f}" for value in record.results["rss_megabytes"].values())


QUOTES = (
    Quote("docs/what-ran.md", "| speed of the CPU engine", lambda: [*_speed_of_the_cpu_engine()]),
    Quote("docs/what-ran.md", "| `nemotron plan`", lambda: [*_fractions_of_the_limit()]),
    Quote("docs/what-ran.md", "| `nemotron bench`", lambda: [*_load_over_perf_analyzer()]),
    Quote("docs/what-ran.md", "| speed of the converter", lambda: [*_conversion()]),
    Quote("docs/what-ran.md", "| CPU engine, BF16", lambda: [*_exact_answers("bf16")]),
    Quote("docs/what-ran.md", "| CPU engine, FP8", lambda: [*_exact_answers("fp8")]),
    Quote(
        "docs/what-ran.md",
        "| `nemotron batch`",
        lambda: [f"{Record.read('batch_chaos').arguments['rows']:,}"],
    ),
    Quote(
        "docs/batch.md",
        "results/batch_chaos.json",
        lambda: [f"{Record.read('batch_chaos').arguments['rows']:,}"],
    ),
    Quote("docs/serve.md", "results/stress.json", lambda: [*_stress()]),
)
"""All quotes. A page's passages without an entry quote no record."""


def text_of(quote: Quote) -> str:
    """Return the text of a quote's page."""
    return (ROOT / quote.page).read_text(encoding="utf-8")
