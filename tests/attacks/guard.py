"""Runs an attack on the converter and checks that it is refused without any effect."""

from __future__ import annotations

import re
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_core.errors import NemotronError

MEMORY_LIMIT = 64 << 20
CANARY = b"outside"
RUNS_SOMETHING = re.compile(
    r"os\.(system|exec|fork|posix_spawn|spawn)|subprocess\.|socket\.|ctypes\."
)

Build = Callable[[Path], Path]
"""Makes the hostile checkpoint in a folder of its own, beside which is the file `canary`."""


@dataclass(frozen=True)
class Attack:
    """A hostile checkpoint and a pattern of the expected error, which should name the member."""

    build: Build
    message: str


_events: list[tuple[str, tuple[Any, ...]]] | None = None
_others: set[int] = set()
"""Threads that have nothing to do with the attack, such as the watch over a server."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is None or threading.get_ident() in _others:
        return
    if event == "open" or RUNS_SOMETHING.match(event):
        _events.append((event, arguments))


sys.addaudithook(_watch)


@contextmanager
def _watched() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    global _events  # noqa: PLW0603 - an audit hook cannot be removed
    _others.clear()
    _others.update(set(sys._current_frames()) - {threading.get_ident()})
    _events = []
    try:
        yield _events
    finally:
        _events = None


def try_attack(attack: Attack, tmp_path: Path) -> None:
    """Check that the attack is refused in one line, in little memory, without access outside."""
    canary = tmp_path / "canary"
    canary.write_bytes(CANARY)
    (tmp_path / "attack").mkdir()
    (tmp_path / "results").mkdir()
    source = attack.build(tmp_path / "attack")
    before = sorted(tmp_path.rglob("*"))
    tracemalloc.start()
    try:
        with _watched() as events, pytest.raises(NemotronError, match=attack.message) as caught:
            convert(source, tmp_path / "results" / "out", Options(Parallel(2, 1)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert peak < MEMORY_LIMIT
    assert [name for name, _ in events if name != "open"] == []
    assert not [
        path for _, (path, *_) in events if isinstance(path, str) and path.endswith("canary")
    ]
    created = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert all(path.is_relative_to(tmp_path / "results" / "out.partial") for path in created)
    assert canary.read_bytes() == CANARY
