"""The number of requests at once, against simulated servers; no clock but theirs."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from nemotron_data.batch.pace import Bucket, Concurrency

TOKENS = 10


def simulate(
    concurrency: Concurrency, latency: Callable[[int], float], queue: int, answers: int
) -> tuple[float, int]:
    """Answers a second in the later half, and refusals.

    A request that finds n others takes `latency(n)`; with `queue` others it is refused.
    """
    now, refused, done = 0.0, 0, 0
    running: list[tuple[float, float, int]] = []
    half = 0.0
    while done < answers:
        while len(running) < concurrency.limit:
            if len(running) >= queue:
                refused += 1
                concurrency.record_overload(concurrency.limit)
                break
            heapq.heappush(running, (now + latency(len(running) + 1), now, concurrency.limit))
        now, sent, limit = heapq.heappop(running)
        concurrency.record_answer(now - sent, TOKENS, limit)
        done += 1
        if done == answers // 2:
            half = now
    return (answers - answers // 2) / (now - half), refused


def batching(room: int) -> Callable[[int], float]:
    """Many cost a little more than one, up to `room`; then they wait for each other."""
    return lambda n: (1 + 0.3 * min(n, room) / room) * max(1, n / room)


@pytest.mark.parametrize("room", [1, 5, 16, 64, 200])
def test_finds_what_a_server_has_room_for(room: int) -> None:
    concurrency = Concurrency(maximum=1024)
    rate, refused = simulate(concurrency, batching(room), queue=10**9, answers=20_000)
    best = room / batching(room)(room)
    assert rate > 0.8 * best
    assert concurrency.limit <= max(8, 3 * room)
    assert refused == 0


def test_stays_below_what_a_server_refuses() -> None:
    concurrency = Concurrency(maximum=1024)
    rate, refused = simulate(concurrency, lambda n: 1.0, queue=40, answers=20_000)
    assert rate > 0.6 * 40
    assert refused < 20_000 * 0.02


def test_grows_to_the_most_where_nothing_gets_slower() -> None:
    concurrency = Concurrency(maximum=100)
    simulate(concurrency, lambda n: 1.0, queue=10**9, answers=5_000)
    assert concurrency.limit == 100


def test_halved_once_for_all_that_were_sent_together() -> None:
    concurrency = Concurrency(maximum=64, first=64)
    for _ in range(64):
        concurrency.record_overload(limit_when_sent=64)
    assert concurrency.limit == 32
    for _ in range(10):
        concurrency.record_overload(concurrency.limit)
    assert concurrency.limit == 1


def test_a_bucket_keeps_its_rate() -> None:
    now, taken = 0.0, []
    bucket = Bucket(60, now)
    while now < 600:
        wait = bucket.wait(1, now)
        if wait:
            now += wait
        else:
            bucket.take(1)
            taken.append(now)
    assert len(taken) <= 60 * 10 + 7
    assert len(taken) >= 60 * 10
    assert Bucket(None, 0).wait(10**9, 0) == 0


def test_more_than_a_bucket_holds_waits_until_it_is_full_and_then_owes() -> None:
    bucket = Bucket(600, 0)  # ten a second, sixty at most
    assert bucket.wait(1000, 0) == 0
    bucket.take(1000)
    assert bucket.wait(1, 0) == pytest.approx(94.1)
    bucket.take(-990)  # it was only ten
    assert bucket.wait(1, 0) == 0
