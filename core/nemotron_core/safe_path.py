"""The environment in which this project's commands start Python's modules."""

from __future__ import annotations

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Keeps the current folder, where `python -m` looks for modules first, out of the path. It may be
a model's, whose files are not to be run. Python before 3.11 ignores the variable."""
