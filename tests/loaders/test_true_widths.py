"""The larger shapes of the family in their true widths, at two layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.convert.test_family import keeps_its_logits_in_true_widths


@pytest.mark.parametrize("name", ["minitron-8b-base", "nemotron-4-15b"])
def test_converted_weights_have_the_same_logits(name: str, tmp_path: Path) -> None:
    """They take up to 5 GB of memory and 4 GB of disk."""
    keeps_its_logits_in_true_widths(name, tmp_path)
