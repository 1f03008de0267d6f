"""The pace of requests: its rules by hand, and against simulated servers with their own clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from nemotron_data.batch.pace import FIRST_LIMIT, HOLD, QUICK_ANSWERS, Bucket, Concurrency, backoff

TOKENS = 10


def simulate(
    concurrency: Concurrency, latency: Callable[[int], float], queue: int, answers: int
) -> tuple[float, int]:
    """Return the answers per second in the later half, and the number of refused requests.

    A request that makes n requests at once takes `latency(n)` seconds. With `queue` others at the
    server it is refused.
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
    """Return a latency that grows slowly up to `room` requests, and in proportion beyond."""
    return lambda n: (1 + 0.3 * min(n, room) / room) * max(1, n / room)


@pytest.mark.parametrize("room", [1, 5, 16, 64, 200])
def test_finds_what_a_server_has_room_for(room: int) -> None:
    concurrency = Concurrency(maximum=1024)
    rate, refused = simulate(concurrency, batching(room), queue=10**9, answers=20_000)
    best = room / batching(room)(room)
    assert rate > 0.8 * best
    assert concurrency.limit <= max(FIRST_LIMIT, 3 * room)
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


def test_noise_does_not_hide_that_a_server_has_room() -> None:
    generator = random.Random(1)
    concurrency = Concurrency(maximum=256)
    simulate(concurrency, lambda _n: generator.uniform(7, 13), queue=10**9, answers=1_500)
    assert concurrency.limit == 256


def test_a_server_is_full_after_three_latencies() -> None:
    """Requests run until the clock passes their end; answers of one latency arrive together."""
    concurrency = Concurrency(maximum=1024)
    running: list[tuple[float, int]] = []
    for latencies in range(1, 4):
        running += [(latencies, concurrency.limit)] * (concurrency.limit - len(running))
        for _end, limit in running:
            concurrency.record_answer(10, TOKENS, limit)
        running.clear()
    assert concurrency.limit == 1024


def play_round(concurrency: Concurrency, latency: float) -> int:
    """Record as many answers as a decision needs, of `latency` seconds per token.

    Returns the new limit.
    """
    limit = concurrency.limit
    for answer in range(limit):
        concurrency.record_answer(latency * TOKENS, TOKENS, limit)
        if concurrency.limit != limit:
            assert answer + 1 in (QUICK_ANSWERS, limit)
            break
    return concurrency.limit


def held_rounds(concurrency: Concurrency) -> int:
    """Play rounds until the limit grows, and return how many did not raise it."""
    limit, rounds = concurrency.limit, 0
    while play_round(concurrency, 1.0) == limit:
        rounds += 1
    return rounds


def closed(maximum: int, limit: int) -> Concurrency:
    """Return a limit that has been opened, after a step up that failed."""
    concurrency = Concurrency(maximum, first=limit)
    assert play_round(concurrency, 1.0) == min(maximum, 4 * limit)
    assert play_round(concurrency, 9.0) == limit
    return concurrency


def test_the_first_limit_is_twenty_or_the_maximum() -> None:
    assert Concurrency(maximum=64).limit == 20
    assert Concurrency(maximum=2).limit == 2
    assert Concurrency(maximum=64, first=8).limit == 8


def test_the_limit_is_opened_by_few_answers_up_to_the_maximum() -> None:
    concurrency = Concurrency(maximum=1000)
    assert [play_round(concurrency, 1.0) for _ in range(5)] == [80, 320, 1000, 1000, 1000]


def test_few_answers_are_not_needed_where_fewer_run() -> None:
    concurrency = Concurrency(maximum=64, first=2)
    for limit in [2, 8]:
        concurrency.record_answer(1, 1, 2)
        assert concurrency.limit == limit


@pytest.mark.parametrize(("latency", "limit"), [(3.25, 320), (3.26, 20)])
def test_a_step_is_kept_if_a_quarter_of_it_becomes_throughput(latency: float, limit: int) -> None:
    concurrency = Concurrency(maximum=640)
    assert play_round(concurrency, 1.0) == 80
    assert play_round(concurrency, latency) == limit


def test_a_step_is_measured_against_the_round_before_it() -> None:
    concurrency = Concurrency(maximum=10_000)
    assert play_round(concurrency, 1.0) == 80
    assert play_round(concurrency, 1.5) == 320
    assert play_round(concurrency, 1.5 * 3.25) == 1280
    assert play_round(concurrency, 1.5 * 3.25 * 3.26) == 320


def test_a_whole_round_decides_about_each_step_of_the_opening() -> None:
    concurrency = Concurrency(maximum=10_000)
    assert [play_round(concurrency, latency) for latency in (1, 1, 1, 9)] == [80, 320, 1280, 320]
    assert [play_round(concurrency, latency) for latency in (9, 9)] == [80, 20]
    assert held_rounds(concurrency) == 16


def test_a_whole_round_decides_about_the_last_step_to_the_maximum() -> None:
    concurrency = Concurrency(maximum=80)
    assert play_round(concurrency, 1.0) == 80
    assert concurrency.proven_limit == 20
    for _ in range(QUICK_ANSWERS):
        concurrency.record_answer(TOKENS, TOKENS, 80)  # fast ones come first
    assert play_round(concurrency, 9.0) == 20
    kept = Concurrency(maximum=80)
    play_round(kept, 1.0)
    assert play_round(kept, 1.0) == play_round(kept, 1.0) == 80
    assert kept.proven_limit == 80


def test_a_known_limit_is_opened_by_the_first_answer() -> None:
    concurrency = Concurrency(maximum=256, known=200)
    assert concurrency.limit == 20
    concurrency.record_answer(1, 1, 20)
    assert concurrency.limit == concurrency.proven_limit == 200
    assert play_round(concurrency, 1.0) == 256
    assert concurrency.proven_limit == 200
    for maximum, known, limit in [(100, 200, 100), (256, 3, 20)]:
        other = Concurrency(maximum, known=known)
        other.record_answer(1, 1, 20)
        assert other.limit == limit


def test_after_a_step_that_failed_the_limit_is_held_and_then_grows_by_an_eighth() -> None:
    concurrency = closed(1024, 40)
    assert held_rounds(concurrency) == HOLD
    assert concurrency.limit == 45
    assert play_round(concurrency, 1.0) == 50  # 45 and an eighth, rounded down


def test_a_small_limit_grows_by_one() -> None:
    concurrency = closed(1024, 4)
    held_rounds(concurrency)
    assert concurrency.limit == 5


def test_the_hold_doubles_with_each_failure_and_starts_again_after_a_success() -> None:
    concurrency = Concurrency(maximum=1024, first=8)
    play_round(concurrency, 1.0)
    holds = []
    for _ in range(5):
        play_round(concurrency, 9.0)
        holds.append(held_rounds(concurrency))
    assert holds == [4, 8, 16, 32, 32]
    play_round(concurrency, 1.0)
    play_round(concurrency, 9.0)
    assert held_rounds(concurrency) == HOLD


def test_at_the_maximum_no_step_is_on_trial() -> None:
    concurrency = Concurrency(maximum=8)
    assert [play_round(concurrency, latency) for latency in (1, 1.5, 3, 6, 12)] == [8] * 5
    assert concurrency.proven_limit == 8
    concurrency.record_overload(8)
    assert held_rounds(concurrency) == HOLD
    assert play_round(concurrency, 9.0) == 4
    assert held_rounds(concurrency) == HOLD


@pytest.mark.parametrize(("seconds", "limit"), [(6.25, 32), (6.35, 2)])
def test_the_latency_of_a_round_is_its_seconds_by_its_tokens(seconds: float, limit: int) -> None:
    concurrency = Concurrency(maximum=64, first=2)
    concurrency.record_answer(3, 1, 2)
    concurrency.record_answer(0, 2, 2)  # one second per token
    assert concurrency.limit == 8
    for _ in range(6):
        concurrency.record_answer(3, 0, 8)  # no tokens count as one token
    concurrency.record_answer(1.75, 1, 8)
    concurrency.record_answer(seconds, 1, 8)  # 3.25 seconds per token, or a little more
    assert concurrency.limit == limit


def test_answers_of_another_limit_are_ignored() -> None:
    concurrency = Concurrency(maximum=64, first=4)
    for limit in [3, 5] * 10:
        concurrency.record_answer(1, 1, limit)
        concurrency.record_overload(limit)
    assert concurrency.limit == 4
    assert play_round(concurrency, 1.0) == 16


def test_halved_once_for_all_that_were_sent_together() -> None:
    concurrency = Concurrency(maximum=64, first=64)
    for _ in range(64):
        concurrency.record_overload(limit_when_sent=64)
    assert concurrency.limit == 32
    for limit in [16, 8, 4, 2, 1, 1]:
        concurrency.record_overload(concurrency.limit)
        assert concurrency.limit == limit


def test_after_an_overload_a_new_round_begins_and_no_step_is_on_trial() -> None:
    concurrency = Concurrency(maximum=1024, first=4)
    assert play_round(concurrency, 1.0) == 16
    for _ in range(3):
        concurrency.record_answer(1, 1, 16)
    concurrency.record_overload(16)
    assert concurrency.limit == concurrency.proven_limit == 8
    assert play_round(concurrency, 9.0) == 8
    assert held_rounds(concurrency) == HOLD - 1
    assert concurrency.limit == 9


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


def test_a_bucket_holds_a_tenth_of_a_minute() -> None:
    bucket = Bucket(60, 100)
    bucket.take(6)
    assert bucket.wait(1, 100) == 1
    assert bucket.wait(1, 100.5) == 0.5
    assert bucket.wait(1, 101) == 0
    assert bucket.wait(6, 1000) == 0  # full again, and no fuller than at first
    bucket.take(6)
    assert bucket.wait(1, 1000) == 1


def test_a_bucket_fills_at_its_rate() -> None:
    bucket = Bucket(120, 0)
    bucket.take(12)
    assert bucket.wait(2, 0.25) == 0.75
    assert bucket.wait(2, 0.5) == 0.5
    assert bucket.wait(2, 1) == 0


def test_a_bucket_holds_at_least_one() -> None:
    bucket = Bucket(6, 0)
    assert bucket.wait(1, 0) == 0
    bucket.take(0.5)
    assert bucket.wait(0.5, 0) == 0
    bucket.take(0.5)
    assert bucket.wait(1, 0) == 10


def test_more_than_a_bucket_holds_waits_until_it_is_full_and_then_owes() -> None:
    bucket = Bucket(600, 0)  # ten a second, sixty at most
    assert bucket.wait(1000, 0) == 0
    bucket.take(1000)
    assert bucket.wait(1, 0) == pytest.approx(94.1)
    bucket.take(-990)  # it was only ten
    assert bucket.wait(1, 0) == 0


def test_the_backoff_doubles_up_to_the_longest_and_is_spread() -> None:
    assert [backoff(attempt, 1, 5, 1) for attempt in (1, 2, 3, 4, 50)] == [1, 2, 4, 5, 5]
    assert [backoff(attempt, 1, 5, 0) for attempt in (1, 2, 3, 4, 50)] == [0.5, 1, 2, 2.5, 2.5]
