"""Asking another model of the server from within a model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

KEEP_SECONDS = 2.0

_lock = threading.Lock()
_answered: deque[tuple[float, Any]] = deque()


def responses(request: Any) -> Iterator[Any]:
    """Those of one `InferenceRequest`, as they come; TritonModelException if it fails at once.

    Triton 2.51 lets go of an answer's responses in threads of its own too, and then without
    Python's lock (python_backend's `~PbTensor` takes it since 24.12). Whoever is last frees their
    arrays, so that must not be Triton: answers are kept here until it has surely let go of them.
    """
    answer = request.exec(decoupled=True)
    try:
        yield from answer
    finally:
        with _lock:
            _answered.append((time.monotonic(), answer))
        forget_old()


def forget_old(seconds: float = KEEP_SECONDS) -> None:
    """Let go of the answers that ended so long ago; each new one does it for those before."""
    while True:
        with _lock:
            if not _answered or _answered[0][0] > time.monotonic() - seconds:
                return
            _, _answer = _answered.popleft()
        del _answer  # its end may wait for Triton, which must not happen under the lock


def forget_all() -> None:
    """For a model's end, which Triton's objects must not outlive."""
    with _lock:
        last = _answered[-1][0] if _answered else 0.0
    time.sleep(max(0.0, last + KEEP_SECONDS - time.monotonic()))
    forget_old(0)
