"""The hidden states of all calibration tokens between two layers, in memory or on disk."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemotron_core.files import sync, write_atomically

STATE_NAME = "state.json"
FILE_NAMES = ("hidden.0", "hidden.1")
SNAPSHOT_SECONDS = 60.0
"""Seconds between two snapshots on disk of hidden states that are kept in memory."""


class HiddenStates:
    """BF16 words [tokens, width] that each decoder layer reads and replaces.

    A layer reads the states that the layer before it wrote, writes its own, and ends with `commit`.
    On disk, two files swap roles at each commit, so a run that is killed resumes from the last
    committed layer. States in memory are copied to the disk once per `SNAPSHOT_SECONDS`.
    """

    def __init__(self, folder: Path, tokens: int, width: int, *, in_memory: bool) -> None:
        self._folder = folder
        self._shape = tokens, width
        self._memory = np.empty(self._shape, np.uint16) if in_memory else None
        self._current = 0
        self._saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def load(self) -> dict[str, Any] | None:
        """Load the last commit that was saved to disk and return its `state`.

        Returns `None` if there is no saved commit or its file does not have the expected size.
        """
        try:
            state: dict[str, Any] = json.loads((self._folder / STATE_NAME).read_bytes())
            path = self._folder / FILE_NAMES[state["current"]]
            if path.stat().st_size != self._shape[0] * self._shape[1] * 2:
                return None
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        self._current = state["current"]
        if self._memory is not None:
            self._memory[:] = np.fromfile(path, np.uint16).reshape(self._shape)
        return state

    def read(self, first: int, end: int) -> NDArray[np.uint16]:
        """Return the last layer's states [end - first, width] of tokens `first` to `end`."""
        if self._memory is not None:
            return self._memory[first:end]
        width = self._shape[1]
        with (self._folder / FILE_NAMES[self._current]).open("rb") as file:
            file.seek(first * width * 2)
            return np.fromfile(file, np.uint16, (end - first) * width).reshape(-1, width)

    def write(self, first: int, words: NDArray[np.uint16]) -> None:
        """Store the states [n, width] that this layer computed for the tokens from `first` on."""
        if self._memory is not None:
            self._memory[first : first + len(words)] = words
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self._folder / FILE_NAMES[1 - self._current], flags, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.seek(first * self._shape[1] * 2)
            file.write(np.ascontiguousarray(words).data)

    @property
    def should_save(self) -> bool:
        """Whether the next `commit` should save to disk."""
        return self._memory is None or time.monotonic() - self._saved >= SNAPSHOT_SECONDS

    def commit(self, state: dict[str, Any], *, save: bool) -> None:
        """End a layer: its states become the current ones.

        With `save`, they and `state`, which `load` returns later, are made durable on disk.
        """
        if self._memory is None:
            self._current = 1 - self._current
        elif save:
            self._current = 1 - self._current
            self._memory.tofile(self._folder / FILE_NAMES[self._current])
        if not save:
            return
        sync(self._folder / FILE_NAMES[self._current])
        state = state | {"current": self._current}
        write_atomically(self._folder / STATE_NAME, json.dumps(state))
        self._saved = time.monotonic()
