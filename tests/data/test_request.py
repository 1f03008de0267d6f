"""The seeds of a batch's requests."""

from __future__ import annotations

from nemotron_data.batch.request import row_seed


def test_seeds_are_the_rows_own() -> None:
    assert row_seed(0, "question-1") == 280154119006244  # as documented: it must never change
    seeds = {row_seed(run, f"row-{row}") for run in range(2) for row in range(500)}
    assert len(seeds) == 1000
    assert max(seeds) < 1 << 48
