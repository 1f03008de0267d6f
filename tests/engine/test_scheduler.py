"""The rules that are the same for all libraries, with one that only counts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.metrics import (
    INTER_TOKEN_LATENCY_METRIC,
    LATENCY_BOUNDS,
    TIME_TO_FIRST_TOKEN_METRIC,
)
from nemotron_engine import scheduler
from nemotron_engine.outbox import Outbox
from nemotron_engine.protocol import Chunk, Histogram
from nemotron_engine.scheduler import Scheduler
from tests.engine.fake_adapter import (
    FATAL,
    MAX_BATCH_SIZE,
    MAX_QUEUE_SIZE,
    REFUSED,
    REQUEST_SECONDS,
    SILENT,
    FakeAdapter,
)
from tests.engine.requests import Answer, Engine, request

PLACES = MAX_BATCH_SIZE + MAX_QUEUE_SIZE


@pytest.fixture
def adapter() -> FakeAdapter:
    return FakeAdapter()


@pytest.fixture
def engine(adapter: FakeAdapter) -> Engine:
    return Engine(adapter)


class Clock:
    """The scheduler's time, which the test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.time = SimpleNamespace(
            monotonic=lambda: self.seconds, time_ns=lambda: int(self.seconds * 1e9)
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(scheduler, "time", clock.time)
    return clock


def kind(answer: Answer) -> ErrorKind:
    with pytest.raises(NemotronError) as caught:
        answer.wait()
    return caught.value.kind


def test_each_client_gets_its_own_tokens(adapter: FakeAdapter) -> None:
    scheduler, outboxes = Scheduler(adapter), [Outbox(), Outbox()]
    requests = [request([10 * number], max_tokens=3) for number in range(2)]
    for outbox, asked in zip(outboxes, requests, strict=True):
        scheduler.ask([asked], outbox)
    assert not scheduler.is_idle
    for _ in range(3):
        scheduler.collect()
    for number, (outbox, asked) in enumerate(zip(outboxes, requests, strict=True)):
        (chunk,) = outbox.take()
        start = 10 * number + 1
        assert (chunk.key, chunk.token_ids) == (asked.key, [start, start + 1, start + 2])
        assert chunk.finish_reason == "length"
    assert scheduler.is_idle


def test_one_bad_request_of_several_refuses_them_all(engine: Engine, adapter: FakeAdapter) -> None:
    answers = engine.ask_all([request([1]), request([]), request([2])])
    assert all(answer.finish_reason == "error" for answer in answers)
    with pytest.raises(NemotronError, match="the prompt is empty") as caught:
        answers[0].wait()
    assert caught.value.kind is ErrorKind.REFUSED
    assert not adapter.running
    assert engine.scheduler.is_idle


def test_a_key_in_use_is_refused_and_its_request_goes_on(engine: Engine) -> None:
    first = engine.ask([1], max_tokens=5).begin()
    outbox = Outbox()
    engine.scheduler.ask([first.request], outbox)
    (refusal,) = outbox.take()
    assert "a request with this key is running already" in refusal.error
    assert first.wait().token_ids == [2, 3, 4, 5, 6]
    assert engine.ask_all([first.request])[0].wait().token_ids == [2, 3, 4, 5, 6]


def test_a_full_queue(engine: Engine) -> None:
    answers = engine.ask_all([request([SILENT]) for _ in range(PLACES - 1)])
    pair = engine.ask_all([request([1]), request([2])])
    assert [kind(answer) for answer in pair] == [ErrorKind.OVERLOADED] * 2
    last = engine.ask([3], max_tokens=2)
    refused = engine.ask([4])
    assert kind(refused) is ErrorKind.OVERLOADED
    assert refused.failure is not None
    assert f"{PLACES} requests run or wait already" in refused.failure.error
    load = engine.scheduler.load()
    assert (load.running, load.waiting) == (PLACES, MAX_QUEUE_SIZE)
    assert last.wait().token_ids == [4, 5]
    engine.cancel(answers[0])
    assert len(engine.ask_all([request([5]), request([6])])[1].begin().token_ids) == 1


def test_who_drains_lets_others_finish(engine: Engine) -> None:
    running = engine.ask([1], max_tokens=3).begin()
    engine.scheduler.is_draining = True
    assert kind(engine.ask([2])) is ErrorKind.SHUTTING_DOWN
    assert running.wait().token_ids == [2, 3, 4]


def test_a_cancel_by_key(engine: Engine, adapter: FakeAdapter) -> None:
    first, second = engine.ask_all([request([1], max_tokens=9), request([5], max_tokens=9)])
    first.begin()
    engine.scheduler.cancel([b"unknown", first.request.key, b""])
    engine.step()
    assert (first.finish_reason, first.token_ids) == ("cancelled", [2])
    assert adapter.cancelled == [first.request.key]
    assert second.wait().finish_reason == "length"
    engine.cancel(first, second)  # both have ended
    assert adapter.cancelled == [first.request.key]


def test_a_cancel_by_the_clients_name(engine: Engine) -> None:
    """Several requests may share a name, and most have none."""
    names = ("a", "b", "a", "")
    answers = engine.ask_all([request([1], request_id=name) for name in names])
    engine.scheduler.cancel(request_ids=["a", "c"])
    engine.step()
    assert [answer.finish_reason for answer in answers] == ["cancelled", "", "cancelled", ""]


def test_a_request_that_is_named_twice_ends_once(engine: Engine, adapter: FakeAdapter) -> None:
    """By its key twice and by its client's name as well: the engine and the others go on."""
    named = request([1], request_id="a")
    answers = engine.ask_all([named, request([5], max_tokens=3)])
    engine.scheduler.cancel([named.key, named.key], ["a", "a"])
    engine.step()
    assert answers[0].finish_reason == "cancelled"
    assert adapter.cancelled == [named.key]
    assert answers[1].wait().token_ids == [6, 7, 8]


def test_two_requests_with_one_key_are_refused_together(engine: Engine) -> None:
    outbox = Outbox()
    twice = request([1])
    engine.scheduler.ask([twice, twice], outbox)
    assert {chunk.error for chunk in outbox.take()} == {"two requests have the same key"}
    assert engine.scheduler.is_idle
    assert engine.ask([1], max_tokens=2).wait().token_ids == [2, 3]


def test_the_requests_of_a_client_that_has_gone(engine: Engine, adapter: FakeAdapter) -> None:
    outbox = Outbox()
    engine.scheduler.ask([request([1]), request([2])], outbox)
    stays = engine.ask([3], max_tokens=4)
    engine.scheduler.close_outbox(outbox)
    assert len(adapter.cancelled) == 2
    assert stays.wait().token_ids == [4, 5, 6, 7]


def test_what_the_library_says_of_a_cancelled_request_is_dropped(
    engine: Engine, adapter: FakeAdapter
) -> None:
    answer, other = engine.ask_all([request([1]), request([5])])
    answer.begin()
    adapter.cancel = lambda key: None  # type: ignore[method-assign]
    engine.cancel(answer)
    engine.step()  # would fail in `Answer.push`
    assert answer.token_ids == [2]
    assert other.token_ids == [6, 7]


def test_what_ends_before_its_first_step_has_no_start(engine: Engine) -> None:
    answer = engine.ask([1])
    engine.cancel(answer)
    assert (answer.finish_reason, answer.scheduled_ns) == ("cancelled", 0)


def test_a_request_that_the_library_refuses_ends_alone(engine: Engine) -> None:
    bad, good = engine.ask_all([request([REFUSED]), request([1], max_tokens=1)])
    with pytest.raises(NemotronError, match=r"^the library refuses$"):
        bad.wait()
    assert good.wait().token_ids == [2]
    assert engine.scheduler.is_idle


def test_what_the_library_raises_is_the_end(engine: Engine) -> None:
    engine.ask([FATAL])
    with pytest.raises(RuntimeError, match="the library is lost"):
        engine.step()


def test_deadlines(engine: Engine, adapter: FakeAdapter, clock: Clock) -> None:
    assert engine.scheduler.seconds_to_deadline() is None
    long = engine.ask([SILENT])
    assert engine.scheduler.seconds_to_deadline() == REQUEST_SECONDS
    too_long = engine.ask([SILENT], seconds=2.0 * REQUEST_SECONDS)
    short = engine.ask([SILENT], seconds=5.0)
    clock.seconds += 4.0
    assert engine.scheduler.seconds_to_deadline() == 1.0
    engine.step()
    assert not short.finish_reason
    clock.seconds += 1.0
    engine.step()
    assert kind(short) is ErrorKind.TIMED_OUT
    assert adapter.cancelled == [short.request.key]
    assert engine.scheduler.seconds_to_deadline() == REQUEST_SECONDS - 5.0
    assert not long.finish_reason
    clock.seconds += REQUEST_SECONDS
    assert engine.scheduler.seconds_to_deadline() == 0.0
    engine.step()
    assert kind(long) is kind(too_long) is ErrorKind.TIMED_OUT
    assert engine.scheduler.is_idle
    assert engine.scheduler.seconds_to_deadline() is None
    clock.seconds += 1.0
    in_time = engine.ask([1], max_tokens=2, seconds=0.5)
    engine.step()
    assert in_time.wait().finish_reason == "length"


def test_an_answer_that_ends_as_its_time_ends_is_whole(engine: Engine, clock: Clock) -> None:
    answer = engine.ask([1], max_tokens=1, seconds=1.0)
    clock.seconds += 1.0
    engine.step()
    assert answer.wait().finish_reason == "length"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize(
    ("stops", "count"),
    [
        ([[6]], 5),
        ([[4, 5]], 4),
        ([[9, 10, 11], [6, 8], [3, 4, 5, 6, 7]], 6),  # the first to end counts
        ([[5, 6], [6]], 5),
        ([[1, 2]], None),  # 1 is the prompt's
        ([[21]], 20),  # the last token that may come
        ([[20, 21, 22]], None),
    ],
)
def test_stop_sequences(
    stops: list[list[int]], count: int | None, size: int, engine: Engine, adapter: FakeAdapter
) -> None:
    adapter.tokens_per_step = size
    answer = engine.ask([1], max_tokens=20, stop_sequences=stops, log_probs=True).wait()
    length = 20 if count is None else count
    assert answer.token_ids == list(range(2, 2 + length))
    assert answer.log_probs == [-float(id_) for id_ in answer.token_ids]
    assert answer.finish_reason == ("length" if count is None else "stop")
    assert engine.scheduler.is_idle
    engine.ask([1], max_tokens=1).wait()  # whatever the adapter still has comes to nobody


def test_a_stop_sequence_frees_the_library_at_once(engine: Engine, adapter: FakeAdapter) -> None:
    engine.ask([1], max_tokens=20, stop_sequences=[[3, 4]]).wait()
    assert not adapter.running
    ended = engine.ask([1], max_tokens=3, stop_sequences=[[4]]).wait()
    assert ended.finish_reason == "stop"
    assert ended.request.key not in adapter.cancelled  # the library has ended it itself


class Scripted(FakeAdapter):
    """Generates tokens from a list, in chunks of the given sizes."""

    def __init__(self, ids: list[int], sizes: list[int]) -> None:
        super().__init__()
        self.ids, self.sizes = ids, sizes

    def collect(self) -> list[Chunk]:
        size = self.sizes.pop(0) if self.sizes else len(self.ids)
        part, self.ids = self.ids[:size], self.ids[size:]
        top = [[(id_, -1.0)] for id_ in part]
        (key,) = self.running
        return [Chunk(key, part, [], "" if self.ids else "length", top_log_probs=top)]


def first_end(ids: list[int], stops: Iterable[list[int]]) -> int | None:
    """Return the number of tokens up to the end of the first stop sequence."""
    ends = [
        n for n in range(len(ids) + 1) for s in stops if n >= len(s) and ids[n - len(s) : n] == s
    ]
    return min(ends, default=None)


letters = st.integers(1, 3)


@given(
    ids=st.lists(letters, min_size=1, max_size=30),
    sizes=st.lists(st.integers(1, 5), max_size=30),
    stops=st.lists(st.lists(letters, min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_sequences_do_not_depend_on_the_chunks(
    ids: list[int], sizes: list[int], stops: list[list[int]]
) -> None:
    end = first_end(ids, stops)
    engine, outbox = Scheduler(Scripted(list(ids), sizes)), Outbox()
    engine.ask([request([9], max_tokens=len(ids), stop_sequences=stops)], outbox)
    while not engine.is_idle:
        engine.collect()
    (chunk,) = outbox.take()
    assert chunk.token_ids == ids[:end]
    assert [top[0][0] for top in chunk.top_log_probs] == chunk.token_ids
    assert chunk.finish_reason == ("length" if end is None else "stop")


def test_chunks_come_no_more_often_than_the_client_wants(engine: Engine, clock: Clock) -> None:
    answer = engine.ask([0], max_tokens=9, chunk_seconds=0.05, log_probs=True)
    every = engine.ask([0], max_tokens=9)
    sizes = []
    for _ in range(9):
        count = len(answer.token_ids)
        engine.step()
        sizes.append(len(answer.token_ids) - count)
        clock.seconds += 0.02
    assert sizes == [1, 0, 0, 3, 0, 0, 3, 0, 2]  # the last one waits for nothing
    assert answer.token_ids == every.token_ids == list(range(1, 10))
    assert answer.log_probs == [-float(id_) for id_ in answer.token_ids]
    assert every.chunks == 9


def test_tokens_that_wait_are_sent_although_no_more_come(
    engine: Engine, adapter: FakeAdapter, clock: Clock
) -> None:
    answer = engine.ask([0], max_tokens=9, chunk_seconds=0.05)
    engine.step()
    engine.step()
    assert answer.token_ids == [1]
    adapter.running[answer.request.key] = request([SILENT])  # the library has paused it
    clock.seconds += 0.05
    engine.step()
    assert answer.token_ids == [1, 2]


def test_no_chunks_between_the_first_and_the_last(engine: Engine) -> None:
    answer = engine.ask([0], max_tokens=5, chunk_seconds=math.inf).wait()
    assert (answer.token_ids, answer.chunks) == ([1, 2, 3, 4, 5], 2)


def test_tokens_that_wait_come_with_the_end(engine: Engine, clock: Clock) -> None:
    late = engine.ask([0], chunk_seconds=math.inf, seconds=5)
    cancelled = engine.ask([0], chunk_seconds=math.inf)
    for _ in range(3):
        engine.step()
    engine.cancel(cancelled)
    assert (cancelled.token_ids, cancelled.finish_reason) == ([1, 2, 3], "cancelled")
    clock.seconds += 5
    engine.step()
    assert late.token_ids == [1, 2, 3, 4]
    assert kind(late) is ErrorKind.TIMED_OUT
    engine.step()


def test_requests_that_begin_in_one_step_have_one_start(engine: Engine, clock: Clock) -> None:
    first = engine.ask_all([request([1], max_tokens=2), request([2], max_tokens=3)])
    clock.seconds += 1
    engine.step()
    late = engine.ask([3], max_tokens=1)
    clock.seconds += 1
    starts = [answer.wait().scheduled_ns for answer in (*first, late)]
    assert starts == [1001 * 10**9, 1001 * 10**9, 1002 * 10**9]


def test_what_an_engine_counts(engine: Engine, clock: Clock) -> None:
    engine.ask_all([request([1, 1, 1], max_tokens=3), request([2], max_tokens=2)])
    for seconds in (0.1, 0.003, 0.2):
        clock.seconds += seconds
        engine.step()
    clock.seconds += 10
    engine.step()  # nothing runs
    load = engine.scheduler.load()
    assert (load.steps, load.running, load.waiting) == (3, 0, 0)
    assert (load.prompt_tokens, load.generated_tokens) == (4, 5)
    assert load.kv_cache_usage == 0.0
    first, between = (
        load.histograms[name] for name in (TIME_TO_FIRST_TOKEN_METRIC, INTER_TOKEN_LATENCY_METRIC)
    )
    assert non_zero(first) == {0.128: 2}
    assert first.total == pytest.approx(0.2)
    assert non_zero(between) == {0.004: 2, 0.256: 1}
    assert between.total == pytest.approx(0.206)


def test_an_idle_engine_uses_no_cache_whatever_its_library_says(
    engine: Engine, adapter: FakeAdapter
) -> None:
    adapter.kv_cache_usage = lambda: 0.5  # type: ignore[method-assign]
    assert engine.scheduler.load().kv_cache_usage == 0.0
    answer = engine.ask([1])
    assert engine.scheduler.load().kv_cache_usage == 0.5
    engine.cancel(answer)
    assert engine.scheduler.load().kv_cache_usage == 0.0
    adapter.kv_cache_usage = lambda: None  # type: ignore[method-assign]
    assert engine.scheduler.load().kv_cache_usage is None


def test_latencies_above_every_bound(engine: Engine, clock: Clock) -> None:
    engine.ask([1], max_tokens=1)
    clock.seconds += 100
    engine.step()
    assert engine.scheduler.load().histograms[TIME_TO_FIRST_TOKEN_METRIC].counts[-1] == 1


def non_zero(histogram: Histogram) -> dict[float, int]:
    """Return the numbers in the buckets by their upper bounds."""
    return {b: n for b, n in zip(LATENCY_BOUNDS, histogram.counts, strict=False) if n}
