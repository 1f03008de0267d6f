"""docs/what-ran.md has the date, commit and result of the last run of every make target."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NO_SUITE = {"clean", "lock"}
"""Targets that check nothing."""
ROW = re.compile(
    r"^\| `make (\S+)` \| (\d{4}-\d\d-\d\d) \| ([0-9a-f]{7,40}) \| (.+) \|$", re.MULTILINE
)


def test_every_target_has_its_last_run() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    rows = ROW.findall((ROOT / "docs" / "what-ran.md").read_text())
    assert {target for target, *_ in rows} == set(phony[1].split()) - NO_SUITE
