"""The requests of an engine: every rule that is the same for all libraries."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_engine.adapters.adapter import Adapter, LoraStore
from nemotron_engine.counters import Counters
from nemotron_engine.outbox import Outbox
from nemotron_engine.protocol import Chunk, Load, Request
from nemotron_engine.request import check_request

LATE = "the answer was not whole in the time allowed"


@dataclass(slots=True)
class _Running:
    """A request that has begun and not ended."""

    request: Request
    outbox: Outbox
    deadline: float
    """Seconds of `time.monotonic()`."""
    last_seconds: float
    """Time of its latest tokens; before them, of its arrival."""
    count: int = 0
    """Number of tokens so far."""
    scheduled_ns: int = 0
    tail: tuple[int, ...] = ()
    """The latest tokens, as many as its longest stop sequence may need."""
    due: float = 0.0
    """Seconds of `time.monotonic()` from which its next chunk may be sent."""


class Scheduler:
    """Admits requests to an adapter, and puts what it generates into each client's outbox."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._settings = adapter.settings
        self._running: dict[bytes, _Running] = {}
        self._held: dict[bytes, Chunk] = {}
        """Tokens that wait, because their request asked for less frequent chunks."""
        self._unscheduled: list[_Running] = []
        self._counters = Counters()
        self._next_deadline = float("inf")
        self.is_draining = False

    @property
    def is_idle(self) -> bool:
        """Whether no request runs or waits."""
        return not self._running

    def ask(self, requests: Sequence[Request], outbox: Outbox) -> None:
        """Begin all of the requests, or none of them: then each ends with the error."""
        try:
            self._admit(requests)
        except NemotronError as error:
            for request in requests:
                outbox.put(Chunk.of_error(request.key, error))
            return
        now = time.monotonic()
        limit = self._settings.request_seconds
        for request in requests:
            deadline = now + min(limit, limit if request.seconds is None else request.seconds)
            self._next_deadline = min(self._next_deadline, deadline)
            running = _Running(request, outbox, deadline, now)
            self._running[request.key] = running
            self._unscheduled.append(running)
            self._counters.prompt_tokens += len(request.input_ids)
            try:
                self._adapter.ask(request)
            except NemotronError as error:
                self._end(running, Chunk.of_error(request.key, error))

    def _admit(self, requests: Sequence[Request]) -> None:
        if self.is_draining:
            raise NemotronError("ask another server", kind=ErrorKind.SHUTTING_DOWN)
        for request in requests:
            check_request(request, self._settings, self._adapter.capabilities)
            self._check_lora(request.lora)
            if request.key in self._running:
                raise NemotronError("a request with this key is running already")
        if len({request.key for request in requests}) < len(requests):
            raise NemotronError("two requests have the same key")
        count = len(self._running)
        if count + len(requests) > self._settings.max_batch_size + self._settings.max_queue_size:
            raise NemotronError(
                f"{count} requests run or wait already",
                remedy="try again later",
                kind=ErrorKind.OVERLOADED,
            )

    def cancel(self, keys: Iterable[bytes] = (), request_ids: Sequence[str] = ()) -> None:
        """End the requests with these keys, and those that carry these ids of clients."""
        selected = {key for key in keys if key in self._running}
        if request_ids:
            selected |= {
                key
                for key, running in self._running.items()
                if running.request.request_id in request_ids
            }
        for key in selected:
            self._stop(self._running[key], Chunk(key, finish_reason="cancelled"))

    @property
    def loras(self) -> list[str]:
        """Names of the LoRA adapters that requests may name."""
        return list(self._adapter.loras.names) if self._adapter.loras else []

    def load_lora(self, name: str, folder: Path) -> None:
        """Load a LoRA adapter. Raises `NemotronError` if the engine cannot, or has one of it."""
        store = self._lora_store()
        if not name or name in store.names:
            reason = "is loaded already" if name else "has no name"
            raise NemotronError(f"the adapter {name!r} {reason}", remedy="use another name")
        store.load(name, folder)

    def unload_lora(self, name: str) -> None:
        """Unload a LoRA adapter. Raises `NemotronError` while requests use it."""
        store = self._lora_store()
        self._check_lora(name)
        if count := sum(running.request.lora == name for running in self._running.values()):
            raise NemotronError(
                f"{count} requests use the adapter {name!r}",
                remedy="unload it when they have ended",
                kind=ErrorKind.OVERLOADED,
            )
        store.unload(name)

    def _lora_store(self) -> LoraStore:
        if self._adapter.loras is None:
            raise NemotronError(
                "this engine serves no LoRA adapters",
                remedy="merge them with `nemotron convert --base`, or build for a lane that can,"
                " with `lora` in the profile",
            )
        return self._adapter.loras

    def _check_lora(self, name: str) -> None:
        if name and name not in self.loras:
            raise NemotronError(
                f"there is no adapter {name!r}",
                where="lora_name",
                remedy=f"use {' or '.join(map(repr, self.loras)) or 'none: none is loaded'}",
            )

    def close_outbox(self, outbox: Outbox) -> None:
        """End all requests of a client that has disconnected."""
        self.cancel([key for key, running in self._running.items() if running.outbox is outbox])

    def collect(self) -> None:
        """Let the adapter compute, and put new tokens into the outboxes."""
        if self._unscheduled:
            now_ns = time.time_ns()
            for running in self._unscheduled:
                running.scheduled_ns = now_ns
            self._unscheduled.clear()
        chunks = self._adapter.collect()
        draft_tokens = self._adapter.capabilities.draft_tokens
        now = time.monotonic()
        counts: defaultdict[float, int] = defaultdict(int)
        has_scores = False
        for chunk in chunks:
            if chunk.key not in self._running:  # cancelled before the library knew
                continue
            running = self._running[chunk.key]
            if running.request.stop_sequences:
                self._match_stops(running, chunk)
            if chunk.scores:
                has_scores = True
                self._counters.observe_first_token(now - running.last_seconds)
            if count := len(chunk.token_ids):
                if not running.count:
                    self._counters.observe_first_token(now - running.last_seconds)
                    running.last_seconds = now
                elif draft_tokens:
                    room = running.request.max_tokens - running.count - 1
                    self._counters.observe_draft(count, min(draft_tokens, room))
                running.count += count
                self._counters.generated_tokens += count
                counts[running.last_seconds] += count
                running.last_seconds = now
            if chunk.finish_reason:
                self._end(running, chunk)
            elif running.request.chunk_seconds:
                self._hold(chunk)
            else:
                running.outbox.put(chunk)
        self._release(now)
        for last_seconds, count in counts.items():
            if last_seconds != now:
                self._counters.observe_tokens(now - last_seconds, count)
        self._counters.steps += bool(counts) or has_scores
        if now >= self._next_deadline:
            self._end_late(now)

    def seconds_to_deadline(self) -> float | None:
        """Return the seconds until a request is late, or `None` if none runs."""
        return max(0.0, self._next_deadline - time.monotonic()) if self._running else None

    def load(self) -> Load:
        """Return the engine's load and its counters."""
        running, counters = len(self._running), self._counters
        usage = self._adapter.kv_cache_usage()
        if usage is not None and not running:
            usage = 0.0  # a library that is stepped still has what its last request held
        return Load(
            steps=counters.steps,
            running=running,
            waiting=max(0, running - self._settings.max_batch_size),
            kv_cache_usage=usage,
            prompt_tokens=counters.prompt_tokens,
            generated_tokens=counters.generated_tokens,
            histograms=counters.histograms,
            loras=self.loras,
            draft_steps=counters.draft_steps,
            draft_proposed=counters.draft_proposed,
            draft_accepted=counters.draft_accepted,
        )

    def _match_stops(self, running: _Running, chunk: Chunk) -> None:
        """End the chunk where a stop sequence ends."""
        sequences = [tuple(sequence) for sequence in running.request.stop_sequences]
        longest = max(map(len, sequences))
        for index, id_ in enumerate(chunk.token_ids):
            running.tail = (*running.tail, id_)[-longest:]
            if any(running.tail[-len(sequence) :] == sequence for sequence in sequences):
                if not chunk.finish_reason:  # otherwise the library has ended it itself
                    self._adapter.cancel(chunk.key)
                del chunk.token_ids[index + 1 :], chunk.log_probs[index + 1 :]
                del chunk.top_log_probs[index + 1 :]
                chunk.finish_reason = "stop"
                return

    def _end_late(self, now: float) -> None:
        for running in [running for running in self._running.values() if now >= running.deadline]:
            error = NemotronError(LATE, kind=ErrorKind.TIMED_OUT)
            self._stop(running, Chunk.of_error(running.request.key, error))
        deadlines = (running.deadline for running in self._running.values())
        self._next_deadline = min(deadlines, default=float("inf"))

    def _stop(self, running: _Running, last: Chunk) -> None:
        self._adapter.cancel(running.request.key)
        self._end(running, last)

    def _hold(self, chunk: Chunk) -> None:
        if (held := self._held.get(chunk.key)) is not None:
            held.extend(chunk)
        else:
            self._held[chunk.key] = chunk

    def _release(self, now: float) -> None:
        """Put the tokens that need not wait any longer into the outboxes.

        Only a step looks for them: while requests run there is always a next one.
        """
        for key in list(self._held):
            running = self._running[key]
            if running.due <= now:
                running.due = now + running.request.chunk_seconds
                running.outbox.put(self._held.pop(key))

    def _end(self, running: _Running, last: Chunk) -> None:
        del self._running[last.key]
        if (held := self._held.pop(last.key, None)) is not None:
            running.outbox.put(held)
        last.scheduled_ns = running.scheduled_ns
        running.outbox.put(last)
