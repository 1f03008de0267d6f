"""Programs that the tests drive: where they are, and what to do without them.

`scripts/test_tools.sh` installs them. A test that needs one asks here; it is skipped, loudly, only
where Debian's packages cannot be installed, and never in CI.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / ".tools"


def python_tool(name: str, program: str) -> Path:
    """A program of the environment that `tests/tools/NAME.txt` describes."""
    path = TOOLS / name / "bin" / program
    assert path.exists(), f"{path} is missing: run scripts/test_tools.sh"
    return path


def fetched(name: str, program: str) -> Path:
    """What `tests/tools/fetch_NAME.py` has fetched."""
    path = TOOLS / name / program
    assert path.exists(), f"{path} is missing: run scripts/test_tools.sh"
    return path


def debian_program(program: str) -> str:
    """A program of Debian's, by its name."""
    found = shutil.which(program, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))
    if found is None:
        installable = shutil.which("apt-get") and os.geteuid() == 0
        assert not installable, f"{program} is missing: run scripts/test_tools.sh"
        assert "CI" not in os.environ, f"{program} cannot be installed here"
        pytest.skip(f"*** {program} is not installed, and cannot be without root on Debian ***")
    return found
