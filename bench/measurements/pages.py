"""Write the tables and plots of the pages from the records: `python -m bench.measurements.pages`.

A table stands between `<!-- NAME -->` and `<!-- end -->`, where NAME is in `tables.TABLES`.
"""

from __future__ import annotations

import re
from pathlib import Path

from bench.measurements.plots import PLOTS
from bench.measurements.tables import TABLES

DOCS = Path(__file__).parents[2] / "docs"
IMAGES = DOCS / "images"
PAGES = [DOCS / f"{name}.md" for name in ("performance", "convert", "fp8", "gateway")]
MARKERS = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(text: str) -> str:
    """Return a page's text with all its tables made anew."""

    def fill(block: re.Match[str]) -> str:
        return "\n".join([f"<!-- {block[1]} -->", *TABLES[block[1]](), "<!-- end -->"])

    return MARKERS.sub(fill, text)


def write_pages() -> None:
    """Write all tables and plots."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    for name, plot in PLOTS.items():
        (IMAGES / name).write_text(plot(), encoding="utf-8")


if __name__ == "__main__":
    write_pages()
