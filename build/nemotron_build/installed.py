"""The versions of the distributions in a Python environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nemotron_core.errors import NemotronError

PROGRAM = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def installed_versions(names: Sequence[str], python: Path | None = None) -> dict[str, str]:
    """Return the versions of those of the distributions that are installed.

    `python` is the interpreter of another environment. Raises `NemotronError` if it cannot be run.
    """
    if python is not None:
        return _ask(tuple(names), python)
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@lru_cache
def _ask(names: tuple[str, ...], python: Path) -> dict[str, str]:
    try:
        result = subprocess.run(
            [python, "-I", "-c", PROGRAM, *names], capture_output=True, text=True, check=True
        )
        found: dict[str, str] = json.loads(result.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise NemotronError(
            f"this Python cannot be run: {error}", where=python, remedy="correct engine.python"
        ) from error
    return found
