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
"""How often states that are kept in memory are written down."""


class Activations:
    """BF16 words [tokens, width] that go through the layers one after the other.

    A layer reads what the one before it has written, and `commit` ends it. On disk there are two
    files that change roles, so a run that is killed goes on from the last committed layer; from
    memory a copy goes there now and then.
    """

    def __init__(self, folder: Path, tokens: int, width: int, *, in_memory: bool) -> None:
        self._folder = folder
        self._shape = tokens, width
        self._memory = np.empty(self._shape, np.uint16) if in_memory else None
        self._current = 0
        self._saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def load(self) -> dict[str, Any] | None:
        """What was passed to the last durable `commit`, whose states are then read; or None."""
        try:
            state: dict[str, Any] = json.loads((self._folder / STATE_NAME).read_bytes())
            path = self._folder / FILE_NAMES[state["current"]]
            whole = path.stat().st_size == self._shape[0] * self._shape[1] * 2
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        if not whole:
            return None
        self._current = state["current"]
        if self._memory is not None:
            self._memory[:] = np.fromfile(path, np.uint16).reshape(self._shape)
        return state

    def read(self, first: int, end: int) -> NDArray[np.uint16]:
        """States of tokens `first` to `end` as the last layer has left them."""
        if self._memory is not None:
            return self._memory[first:end]
        width = self._shape[1]
        with (self._folder / FILE_NAMES[self._current]).open("rb") as file:
            file.seek(first * width * 2)
            return np.fromfile(file, np.uint16, (end - first) * width).reshape(-1, width)

    def write(self, first: int, words: NDArray[np.uint16]) -> None:
        """States that this layer makes of the tokens from `first` on."""
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
        """The next `commit` should be durable."""
        return self._memory is None or time.monotonic() - self._saved >= SNAPSHOT_SECONDS

    def commit(self, state: dict[str, Any], *, save: bool) -> None:
        """The layer is done; with `save` the disk holds `state` and the hidden states after it."""
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
