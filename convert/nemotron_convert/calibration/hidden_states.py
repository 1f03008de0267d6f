"""The hidden states of all calibration tokens between two layers, in memory or on disk."""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemotron_convert.calibration.decoder import from_words
from nemotron_core.files import sync, write_atomically

STATE_NAME = "state.json"
STATE_VERSION = 2
"""Version of the files' form. Version 1 had the sequences in the order of the user's file."""
FILE_NAMES = ("hidden.0", "hidden.1")
SNAPSHOT_SECONDS = 60.0
"""Least number of seconds between two snapshots on disk of states that are in memory."""
SNAPSHOT_FRACTION = 0.05
"""Largest fraction of the time that snapshots may take."""
COPY_BYTES = 256 << 20
"""Bytes that are copied to or from the disk at a time."""


class HiddenStates:
    """BF16 numbers [tokens, width] that each decoder layer reads and replaces.

    A layer reads the states that the layer before it wrote, writes its own, and ends with `commit`.
    In memory, the states of each device's sequences are one tensor, replaced in place; from time to
    time they are copied to the disk. On disk, two files swap roles at each commit. A run that is
    killed resumes from the last layer on disk, also with other devices.
    """

    def __init__(self, folder: Path, tokens: int, width: int, parts: Sequence[Tensor] = ()) -> None:
        """`parts` [n, width], on any devices, hold the tokens in order; without, use the disk."""
        self._folder = folder
        self._tokens, self._width = tokens, width
        self._parts = parts
        self._starts = list(accumulate((len(part) for part in parts), initial=0))
        self._current = 0
        self._save_seconds = 0.0
        self._saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def load(self) -> dict[str, Any] | None:
        """Load the last commit that was saved to disk and return its `state`.

        Returns `None` if there is no saved commit or its file does not have the expected size.
        """
        try:
            state: dict[str, Any] = json.loads((self._folder / STATE_NAME).read_bytes())
            path = self._folder / FILE_NAMES[state["current"]]
            size = path.stat().st_size
            if state["version"] != STATE_VERSION or size != self._tokens * self._width * 2:
                return None
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        self._current = state["current"]
        for first, rows in self._pieces():
            rows.copy_(self._read_file(first, first + len(rows)))
        return state

    def read(self, first: int, end: int) -> Tensor:
        """Return the last layer's states [end - first, width] of tokens `first` to `end`.

        They are where they are kept: on a device, or in the CPU's memory. In memory, the tokens
        must be of one part.
        """
        return self._rows(first, end) if self._parts else self._read_file(first, end)

    def write(self, first: int, values: Tensor) -> None:
        """Store the states [n, width] that this layer computed for the tokens from `first` on.

        In memory, this need not wait for the device that computes `values`.
        """
        if self._parts:
            self._rows(first, first + len(values)).copy_(values, non_blocking=True)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self._folder / FILE_NAMES[1 - self._current], flags, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.seek(first * self._width * 2)
            file.write(_words(values).data)

    @property
    def should_save(self) -> bool:
        """Whether the next `commit` should save to disk."""
        pause = max(SNAPSHOT_SECONDS, self._save_seconds / SNAPSHOT_FRACTION)
        return not self._parts or time.monotonic() - self._saved >= pause

    def commit(self, state: dict[str, Any], *, save: bool) -> None:
        """End a layer: its states become the current ones.

        With `save`, they and `state`, which `load` returns later, are made durable on disk. The
        devices must have computed all of them.
        """
        start = time.monotonic()
        if not self._parts or save:
            self._current = 1 - self._current
        if not save:
            return
        path = self._folder / FILE_NAMES[self._current]
        if self._parts:
            with path.open("wb") as file:
                for _, rows in self._pieces():
                    file.write(_words(rows).data)
        sync(path)
        state = state | {"current": self._current, "version": STATE_VERSION}
        write_atomically(self._folder / STATE_NAME, json.dumps(state))
        self._saved = time.monotonic()
        self._save_seconds = self._saved - start

    def _rows(self, first: int, end: int) -> Tensor:
        part = bisect_right(self._starts, first) - 1
        start = self._starts[part]
        return self._parts[part][first - start : end - start]

    def _pieces(self) -> Iterator[tuple[int, Tensor]]:
        """Yield all tokens in memory a few at a time: (first token, view of its states)."""
        step = max(1, COPY_BYTES // (2 * self._width))
        for start, part in zip(self._starts, self._parts, strict=False):
            for first in range(0, len(part), step):
                yield start + first, part[first : first + step]

    def _read_file(self, first: int, end: int) -> Tensor:
        with (self._folder / FILE_NAMES[self._current]).open("rb") as file:
            file.seek(first * self._width * 2)
            words = np.fromfile(file, np.uint16, (end - first) * self._width)
        return from_words(words.reshape(-1, self._width))


def _words(values: Tensor) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Return BF16 values as words in the CPU's memory."""
    words: np.ndarray[Any, np.dtype[np.uint16]]
    words = values.cpu().contiguous().view(torch.uint16).numpy()
    return words
