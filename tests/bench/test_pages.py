"""docs/performance.md says what the results say."""

from __future__ import annotations

from bench.measurements.pages import PAGE, RESULTS, TABLES, page


def test_the_page_is_made_from_the_results() -> None:
    text = PAGE.read_text()
    assert page(text, RESULTS) == text
    assert all(f"<!-- {name} -->" in text for name in [*TABLES, "plan"])
