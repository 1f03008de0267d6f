"""Which requests an engine takes in: right ones, each once, and not too many."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from nemotron_core.engine_settings import EngineSettings
from nemotron_core.errors import NemotronError
from nemotron_engine.request import EngineBroken, GenerationRequest, Overloaded


class Admission:
    """Safe to use from any thread."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._names: set[str] = set()
        self._lock = threading.Lock()
        self._broken: EngineBroken | None = None

    def admit(self, requests: Sequence[GenerationRequest]) -> None:
        """All or none; see `Engine.submit_all`."""
        settings = self._settings
        for request in requests:
            request.check(settings.vocab_size, settings.max_seq_len)
        names = [request.request_id for request in requests]
        with self._lock:
            if self._broken is not None:
                raise self._broken
            for name in names:
                if name in self._names:
                    raise NemotronError(f"a request {name!r} is running already")
            if len(self._names) + len(names) > settings.max_batch_size + settings.max_queue_size:
                raise Overloaded(
                    f"{len(self._names)} requests run or wait already", remedy="try again later"
                )
            self._names.update(names)

    def leave(self, name: str) -> None:
        """The request has ended."""
        with self._lock:
            self._names.discard(name)

    def has(self, name: str) -> bool:
        with self._lock:
            return name in self._names

    @property
    def waiting(self) -> int:
        """Requests beyond what one step computes."""
        with self._lock:
            return max(0, len(self._names) - self._settings.max_batch_size)

    def refuse_all(self, why: str) -> None:
        """From now on: the engine is broken."""
        with self._lock:
            self._broken = EngineBroken(why, remedy="restart the server")
