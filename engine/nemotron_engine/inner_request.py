"""Requests that a model sends to another model of the same server."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

KEEP_SECONDS = 2.0

_lock = threading.Lock()
_finished: deque[tuple[float, Any]] = deque()


def responses(request: Any) -> Iterator[Any]:
    """Yield the responses to an `InferenceRequest` as they come.

    Raises `TritonModelException` if the request fails at once.

    Triton 2.51 releases responses in threads of its own too, and then without Python's lock
    (python_backend's `~PbTensor` takes the lock since 24.12). Whoever releases a response last
    frees its arrays, so that must not be Triton: finished response iterators are kept here until
    Triton has certainly released them.
    """
    iterator = request.exec(decoupled=True)
    try:
        yield from iterator
    finally:
        with _lock:
            _finished.append((time.monotonic(), iterator))
        release_finished()


def release_finished(seconds: float = KEEP_SECONDS) -> None:
    """Release the response iterators that finished more than `seconds` ago."""
    while True:
        with _lock:
            if not _finished or _finished[0][0] > time.monotonic() - seconds:
                return
            _, _iterator = _finished.popleft()
        del _iterator  # its destructor may wait for Triton, which must not happen under the lock


def release_all() -> None:
    """Release every response iterator, once Triton has released it too.

    A model calls this in `finalize`, because Triton's objects must not outlive the model.
    """
    with _lock:
        last = _finished[-1][0] if _finished else 0.0
    time.sleep(max(0.0, last + KEEP_SECONDS - time.monotonic()))
    release_finished(0)
