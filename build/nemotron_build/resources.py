"""Files that are not Python: the profiles and the Triton models."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
PLACES = {
    "profiles": PACKAGE.parent / "profiles",
    "model_repository": PACKAGE.parents[1] / "model_repository",
}
"""Where each folder lies in a checkout; in a wheel they lie inside this package."""


def resource(name: str) -> Path:
    """The folder `name`, installed or in a checkout."""
    packed = PACKAGE / name
    return packed if packed.is_dir() else PLACES[name]
