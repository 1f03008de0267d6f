"""What a process holds in memory."""

from __future__ import annotations

from pathlib import Path

import psutil


def resident(file: Path, process: psutil.Process | None = None) -> int:
    """Bytes of a mapped file that are in the memory of this process, or of another, now."""
    maps = (process or psutil.Process()).memory_maps()
    return sum(one.rss for one in maps if one.path == str(file.resolve()))
