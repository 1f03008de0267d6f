"""The stand-in for pyxis, compiled."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def compiled(folder: Path) -> Path:
    """Compile a plug-in for `plugstack.conf` into `folder`, and return its path."""
    plugin = folder / "container.so"
    flags = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", str(plugin), str(SOURCE)], check=True)
    return plugin
