"""The admission of requests, with a clock that only moves when something sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from nemotron_data.batch.admission import EXPECTED_TOKENS, Admission


class Clock:
    """A clock that stands still; `sleep` moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(round(seconds, 6))
        self.now += seconds + 1e-9  # so that a rounding error does not make a second sleep


class Requests:
    """Requests that run until a test ends them."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._ends: list[asyncio.Future[tuple[int, int]]] = []
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def running(self) -> int:
        return len(self._ends)

    async def start(self, count: int = 1) -> None:
        self.tasks += [asyncio.create_task(self._run()) for _ in range(count)]
        await self.settle()

    async def end(self, count: int = 1, *, prompt: int = 1, completion: int = 1) -> None:
        for _ in range(count):
            self._ends.pop(0).set_result((prompt, completion))
        await self.settle()

    async def fail(self, count: int = 1) -> None:
        for _ in range(count):
            self._ends.pop(0).set_exception(RuntimeError("failed"))
        await self.settle()

    async def settle(self) -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    async def _run(self) -> None:
        async with self._admission.admit() as permit:
            end = asyncio.get_running_loop().create_future()
            self._ends.append(end)
            permit.prompt_tokens, permit.completion_tokens = await end


Scenario = Callable[[Requests, Clock, Admission], Awaitable[None]]


def play(
    scenario: Scenario,
    *,
    maximum: int = 64,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
) -> None:
    """Run a scenario, then end what still runs."""

    async def main() -> None:
        clock = Clock()
        admission = Admission(
            maximum, requests_per_minute, tokens_per_minute, clock=clock, sleep=clock.sleep
        )
        requests = Requests(admission)
        await scenario(requests, clock, admission)
        while requests.running:
            await requests.end()
        await asyncio.gather(*requests.tasks, return_exceptions=True)
        assert admission.running == 0

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize(("maximum", "first"), [(64, 4), (3, 3)])
def test_no_more_run_than_the_limit(maximum: int, first: int) -> None:
    async def scenario(requests: Requests, clock: Clock, admission: Admission) -> None:
        await requests.start(10)
        assert requests.running == admission.running == admission.limit == first
        await requests.fail()
        assert requests.running == admission.running == first
        assert clock.sleeps == []

    play(scenario, maximum=maximum)


def test_a_higher_limit_admits_all_that_it_may() -> None:
    async def scenario(requests: Requests, _clock: Clock, admission: Admission) -> None:
        await requests.start(20)
        await requests.end(4)
        assert requests.running == admission.limit == 8

    play(scenario)


def test_a_lower_limit_lets_running_requests_end_first() -> None:
    async def scenario(requests: Requests, _clock: Clock, admission: Admission) -> None:
        await requests.start(10)
        admission.record_overload(admission.limit, None)
        assert admission.limit == 2
        for running in [3, 2, 2, 2]:
            await requests.fail()
            assert requests.running == admission.running == running

    play(scenario)


def test_requests_that_fail_or_are_cancelled_make_no_round() -> None:
    async def scenario(requests: Requests, _clock: Clock, admission: Admission) -> None:
        await requests.start(4)
        await requests.fail(2)
        requests.tasks[2].cancel()
        requests.tasks[3].cancel()
        await requests.settle()
        assert admission.running == 0
        assert admission.limit == 4

    async def main() -> None:
        clock = Clock()
        admission = Admission(64, None, None, clock=clock, sleep=clock.sleep)
        await scenario(Requests(admission), clock, admission)

    asyncio.run(main())


@pytest.mark.parametrize(("seconds", "limit"), [(17.5, 16), (17.6, 4)])
def test_the_latency_is_the_time_from_admission_to_answer(seconds: float, limit: int) -> None:
    async def scenario(requests: Requests, clock: Clock, admission: Admission) -> None:
        await requests.start(12)
        clock.now += 10
        await requests.end(4, completion=10)
        clock.now += seconds
        await requests.end(8, completion=10)
        assert admission.limit == limit

    play(scenario)


def test_requests_per_minute() -> None:
    async def scenario(requests: Requests, clock: Clock, _admission: Admission) -> None:
        for _ in range(8):
            await requests.start()
            await requests.end()
        assert clock.sleeps == [1, 1]

    play(scenario, requests_per_minute=60)


def test_the_first_requests_take_the_expected_tokens() -> None:
    async def scenario(requests: Requests, clock: Clock, _admission: Admission) -> None:
        await requests.start(2)
        assert clock.sleeps == [EXPECTED_TOKENS / 10]  # until the bucket of 60 is full again

    play(scenario, tokens_per_minute=600)


def test_later_requests_take_the_mean_of_the_answers() -> None:
    async def scenario(requests: Requests, clock: Clock, _admission: Admission) -> None:
        await requests.start()
        await requests.end(prompt=10, completion=20)  # leaves 30 of 60
        await requests.start(2)  # they take 30 each
        assert clock.sleeps == [3]
        await requests.end(2, prompt=6, completion=0)  # 30 + 30 - 12 = 48: the mean is 14
        await requests.start(4)
        assert clock.sleeps == [3, 0.8]

    play(scenario, tokens_per_minute=600)


def test_a_request_that_reports_no_tokens_used_none() -> None:
    async def main() -> None:
        clock = Clock()
        admission = Admission(64, None, 600, clock=clock, sleep=clock.sleep)
        for _ in range(3):
            async with admission.admit():
                pass
        assert clock.sleeps == []
        async with admission.admit() as permit:
            permit.prompt_tokens = 60  # empties the bucket
        async with admission.admit():  # the mean is 15
            assert clock.sleeps == [1.5]

    asyncio.run(main())


def test_a_failed_request_gives_its_tokens_back() -> None:
    async def scenario(requests: Requests, clock: Clock, _admission: Admission) -> None:
        for _ in range(3):
            await requests.start()
            await requests.fail()
        assert clock.sleeps == []

    play(scenario, tokens_per_minute=600)


def test_nothing_is_sent_for_as_long_as_the_server_asks() -> None:
    async def scenario(requests: Requests, clock: Clock, admission: Admission) -> None:
        admission.record_overload(4, 5.0)
        admission.record_overload(4, 3.0)
        admission.record_overload(4, None)
        assert admission.limit == 2
        await requests.start()
        assert clock.sleeps == [5]
        clock.now += 1
        admission.record_overload(2, 3.0)
        await requests.end()
        await requests.start()
        assert clock.sleeps == [5, 3]

    play(scenario)


def test_without_limits_nothing_sleeps() -> None:
    async def scenario(requests: Requests, clock: Clock, _admission: Admission) -> None:
        for _ in range(100):
            await requests.start()
            await requests.end(prompt=10**6, completion=10**6)
        assert clock.sleeps == []

    play(scenario)
