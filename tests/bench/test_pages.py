"""The pages have the numbers of the measurements' records."""

from __future__ import annotations

import dataclasses

import pytest

from bench.measurements.pages import DOCS, IMAGES, PAGES, with_tables
from bench.measurements.plots import PLOTS
from bench.measurements.quotes import QUOTES, Quote, missing_numbers, text_of
from bench.measurements.records import RESULTS, Record
from bench.measurements.tables import TABLES


def test_the_tables_are_those_of_the_records() -> None:
    """Else: python -m bench.measurements.pages."""
    texts = [page.read_text() for page in PAGES]
    assert [with_tables(text) for text in texts] == texts
    assert all(sum(text.count(f"<!-- {name} -->") for text in texts) == 1 for name in TABLES)


@pytest.mark.parametrize("name", PLOTS)
def test_the_plots_are_those_of_the_records(name: str) -> None:
    assert (IMAGES / name).read_text() == PLOTS[name]()
    assert sum(f"images/{name})" in page.read_text() for page in DOCS.glob("*.md")) == 1


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: f"{quote.page}:{quote.anchor}")
def test_quoted_numbers_are_those_of_the_records(quote: Quote) -> None:
    assert missing_numbers(text_of(quote), quote) == []


def test_a_wrong_number_is_found() -> None:
    text = "Other 1.\n\nIt gave 2,345.6 of\n7 by [file](a.json).\n\n| row | 8.90 |\n| next | 1 |\n"
    for anchor, numbers, missing in (
        ("a.json", ["2,345.6", "7"], []),
        ("a.json", ["7", "2,345.6"], ["2,345.6"]),
        ("a.json", ["345"], ["345"]),
        ("a.json", ["1"], ["1"]),
        ("a.json", ["7", "7"], []),
        ("| row", ["8.90"], []),
        ("| row", ["8.9"], ["8.9"]),
        ("| row", ["1"], ["1"]),
    ):
        quote = Quote("", anchor, lambda numbers=numbers: numbers)  # type: ignore[misc]
        assert missing_numbers(text, quote) == missing, (anchor, numbers)
    with pytest.raises(ValueError, match="unpack"):
        missing_numbers(text, dataclasses.replace(QUOTES[0], anchor="absent"))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_records_have_one_form(path: object) -> None:
    name = getattr(path, "stem", "")
    record = Record.read(name)
    assert name.startswith(record.measurement)
    assert record.machine["cores"] and record.results
