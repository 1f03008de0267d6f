"""Admission of requests to an engine: valid ones, each id once, up to a limit."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from nemotron_core.engine_settings import EngineSettings
from nemotron_core.errors import NemotronError
from nemotron_engine.request import EngineBroken, GenerationRequest, Overloaded


class Admission:
    """The ids of the requests that run or wait. Safe to use from any thread."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._ids: set[str] = set()
        self._lock = threading.Lock()
        self._broken: EngineBroken | None = None

    def admit(self, requests: Sequence[GenerationRequest]) -> None:
        """Admit all of the requests, or none of them; see `Engine.submit_all`."""
        settings = self._settings
        for request in requests:
            request.check(settings.vocab_size, settings.max_seq_len)
        ids = [request.request_id for request in requests]
        with self._lock:
            if self._broken is not None:
                raise self._broken
            for request_id in ids:
                if request_id in self._ids:
                    raise NemotronError(f"a request {request_id!r} is running already")
            if len(self._ids) + len(ids) > settings.max_batch_size + settings.max_queue_size:
                raise Overloaded(
                    f"{len(self._ids)} requests run or wait already", remedy="try again later"
                )
            self._ids.update(ids)

    def leave(self, request_id: str) -> None:
        """Free the slot of a request that has ended."""
        with self._lock:
            self._ids.discard(request_id)

    def has(self, request_id: str) -> bool:
        """Return whether a request with this id runs or waits."""
        with self._lock:
            return request_id in self._ids

    @property
    def waiting(self) -> int:
        """Number of requests beyond those that one step computes."""
        with self._lock:
            return max(0, len(self._ids) - self._settings.max_batch_size)

    def refuse_all(self, reason: str) -> None:
        """Refuse every further request with `EngineBroken`."""
        with self._lock:
            self._broken = EngineBroken(reason, remedy="restart the server")
