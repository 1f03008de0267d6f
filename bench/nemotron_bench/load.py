"""The load generator: sends requests at a concurrency or a rate and records their outcomes."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nemotron_bench.statistics import Lengths, arrivals
from nemotron_bench.targets import Event, RequestFailed, Target
from nemotron_core.errors import NemotronError

WORDS = (
    *("river", "stone", "light", "house", "green", "cloud", "paper", "train", "music", "table"),
    *("winter", "garden", "letter", "window", "silver", "bridge", "morning", "forest"),
)
SAMPLE_WORDS = (40, 140)
"""Words in the two prompts from which the number of tokens per word is computed."""


@dataclass(frozen=True)
class Level:
    """One load: a number of requests in flight, or a number of new requests per second."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.concurrency} at once" if self.concurrency else f"{self.rate:g} per second"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of one request: times in seconds on one clock, and the server's token counts."""

    start: float
    first: float | None
    """Time of the first text, or `None` if there was none."""
    end: float
    input_tokens: int
    output_tokens: int
    error: str | None = None

    @property
    def latencies(self) -> dict[str, float | None]:
        """Latencies in seconds by the names of `statistics.LATENCIES`."""
        if self.first is None:
            return {"ttft": None, "itl": None, "e2e": self.end - self.start}
        later_tokens = self.output_tokens - 1
        return {
            "ttft": self.first - self.start,
            "itl": (self.end - self.first) / later_tokens if later_tokens > 0 else None,
            "e2e": self.end - self.start,
        }


class Prompts:
    """Source of prompts: random words that make the requested number of tokens, seeded.

    No two prompts are alike, so no prefix cache makes the server look faster than it is.
    """

    def __init__(self, target: Target, lengths: Lengths, seed: int) -> None:
        self._lengths = lengths
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        few, many = (count_tokens(target, self._text(words), 1) for words in SAMPLE_WORDS)
        self._per_word = (many - few) / (SAMPLE_WORDS[1] - SAMPLE_WORDS[0])
        if self._per_word <= 0:
            raise NemotronError(
                "the server counts no more tokens in a longer prompt", where=target.name
            )
        self._fixed_tokens = few - self._per_word * SAMPLE_WORDS[0]

    def next(self) -> str:
        """Return a new prompt. May be called from any thread."""
        with self._lock:
            tokens = self._lengths.draw(self._rng)
            return self._text(max(1, round((tokens - self._fixed_tokens) / self._per_word)))

    def _text(self, words: int) -> str:
        return " ".join(self._rng.choices(WORDS, k=words))


def count_tokens(target: Target, prompt: str, max_tokens: int) -> int:
    """Return the server's token count of a prompt, after an answer of `max_tokens`.

    Raises `NemotronError` if the request fails.
    """
    try:
        messages = [b"", *target.stream(target.request(prompt, max_tokens))]
        return target.read(messages[-1]).input_tokens
    except RequestFailed as error:
        raise NemotronError(str(error), where=target.name) from error


class Load:
    """Runs loads against a target; `on_end` is called after each request, from any thread."""

    def __init__(
        self,
        target: Target,
        prompts: Prompts,
        outputs: Lengths,
        seed: int,
        on_end: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self._target = target
        self._prompts = prompts
        self._outputs = outputs
        self._seed = seed
        self._rng = random.Random(seed + 1)
        self._on_end = on_end
        self._lock = threading.Lock()

    def run(self, level: Level, requests: int) -> list[Outcome]:
        """Send `requests` requests and return their outcomes in the order in which they end.

        After a `KeyboardInterrupt` no further request is sent.
        """
        outcomes: list[Outcome] = []

        def send_all(lengths: Iterator[int]) -> None:
            for max_tokens in lengths:
                outcome = self.send(self._target.request(self._prompts.next(), max_tokens))
                with self._lock:
                    outcomes.append(outcome)
                self._on_end(outcome)

        lengths = _SharedIterator(self._outputs.draw(self._rng) for _ in range(requests))
        threads = []
        try:
            if level.concurrency:
                for _ in range(min(level.concurrency, requests)):
                    threads.append(threading.Thread(target=send_all, args=(lengths,), daemon=True))
                    threads[-1].start()
            elif level.rate:
                start = time.monotonic()
                for arrival, length in zip(arrivals(level.rate, self._seed), lengths, strict=False):
                    time.sleep(max(0.0, start + arrival - time.monotonic()))
                    threads.append(
                        threading.Thread(target=send_all, args=(iter([length]),), daemon=True)
                    )
                    threads[-1].start()
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            lengths.end()
            raise
        return outcomes

    def send(self, request: bytes) -> Outcome:
        """Send one request and read its stream to the end."""
        start = time.monotonic()
        first = error = None
        message = b""
        event = Event(has_text=False)
        try:
            for message in self._target.stream(request):
                if first is None:
                    received = time.monotonic()
                    event = self._target.read(message)
                    if event.has_text or event.output_tokens:
                        first = received
            end = time.monotonic()
            event = self._target.read(message)
            if first is None:
                error = "the answer has no token"
        except RequestFailed as failure:
            end = time.monotonic()
            error = str(failure)
        return Outcome(
            start=start,
            first=first,
            end=end,
            input_tokens=event.input_tokens,
            output_tokens=event.output_tokens,
            error=error,
        )


class _SharedIterator:
    """An iterator that several threads share and that can be ended early."""

    def __init__(self, items: Iterator[int]) -> None:
        self._items = items
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._lock:
            return next(self._items)

    def end(self) -> None:
        with self._lock:
            self._items = itertools.chain()
