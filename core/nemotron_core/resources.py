"""The folders of data files that a package ships: profiles, Triton models."""

from __future__ import annotations

from pathlib import Path

LEVELS_IN_A_CHECKOUT = 3
"""Number of folders above a module that may hold its data folder."""


def resource(module_file: str, name: str) -> Path:
    """Return the folder `name` that belongs to the package of `module_file` (its `__file__`).

    In a wheel the folder lies inside the package. In a checkout it lies beside the package or one
    level higher.
    """
    folders = Path(module_file).resolve().parents
    return next(
        folder / name for folder in folders[:LEVELS_IN_A_CHECKOUT] if (folder / name).is_dir()
    )
