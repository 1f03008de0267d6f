"""Timeouts, limits and retries of both clients."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import grpc
import pytest

from nemotron_client import (
    AsyncClient,
    Client,
    ClientError,
    ConnectionFailed,
    Limits,
    Piece,
    RequestOptions,
    RequestRefused,
    RequestTimeout,
    Retries,
    ServerFailed,
    ServerOverloaded,
    Timeouts,
    Tls,
)
from nemotron_core.errors import ErrorKind
from tests.client.clients import ONCE, fail_with_each
from tests.client.scripted import Scripted, Serving
from tests.waiting import WAIT

FULL = RuntimeError("server overloaded: 448 requests wait already")
QUICK = Retries(attempts=3, first_delay=0.01)


def test_the_classic_ensemble_says_less() -> None:
    with Serving(Scripted(["Good ", "morning"])) as url, Client(url) as client:
        pieces = list(client.stream_complete("Hello"))
        assert pieces == [Piece("Good "), Piece("morning")]


@pytest.mark.parametrize(
    ("script", "timeouts", "message"),
    [
        ([5.0, "late"], Timeouts(first_token=0.2), "no token in 0.2 seconds"),
        (["a", 0.1, "b", 5.0, "late"], Timeouts(between_tokens=0.5), "no further token in 0.5"),
    ],
)
def test_a_timeout_for_each_wait(script: list[Any], timeouts: Timeouts, message: str) -> None:
    with Serving(Scripted(script)) as url:
        fail_with_each(url, RequestTimeout, message, timeouts=timeouts)


def test_the_clock_stands_while_the_caller_is_slow() -> None:
    timeouts = Timeouts(first_token=WAIT, between_tokens=1.0)
    with Serving(Scripted(["a", "b", "c"])) as url, Client(url, timeouts=timeouts) as client:
        texts = []
        for piece in client.stream_complete("Hello"):
            texts.append(piece.text)
            time.sleep(1.5)
        assert texts == ["a", "b", "c"]


def test_no_connection_in_time() -> None:
    # The listener accepts connections and never answers.
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        options = {"timeouts": Timeouts(connect=0.3), "retries": ONCE}
        fail_with_each(url, ConnectionFailed, f"no answer from {url}", **options)


@pytest.mark.parametrize("failure", [FULL, grpc.StatusCode.UNAVAILABLE])
def test_what_may_work_later_is_tried_again(failure: Any) -> None:
    standin = Scripted([failure], [failure], ["yes"])
    with Serving(standin) as url:
        with Client(url, retries=QUICK) as client:
            assert client.complete("Hello").text == "yes"
        assert standin.calls == 3
        standin.calls = 0

        async def ask() -> str:
            async with AsyncClient(url, retries=QUICK) as client:
                return (await client.complete("Hello")).text

        assert asyncio.run(ask()) == "yes"
        assert standin.calls == 3


@pytest.mark.parametrize(
    ("script", "error", "calls"),
    [
        ([FULL], ServerOverloaded, 3),
        ([RuntimeError("request refused: no")], RequestRefused, 1),
        ([RuntimeError("engine failed: no")], ServerFailed, 1),
        ([RuntimeError("deadline exceeded: no")], RequestTimeout, 1),
        ([grpc.StatusCode.INTERNAL], ServerFailed, 1),
        (["half", grpc.StatusCode.UNAVAILABLE], ConnectionFailed, 1),
        (["a" * 2000], RequestRefused, 1),
    ],
)
def test_what_may_not_help_is_not(script: list[Any], error: type[Exception], calls: int) -> None:
    standin = Scripted(script)
    limits = Limits(message_bytes=1000)
    with Serving(standin) as url, Client(url, retries=QUICK, limits=limits) as client:
        with pytest.raises(error):
            list(client.stream_complete("Hello"))
        assert standin.calls == calls


def test_a_request_larger_than_the_limit() -> None:
    standin = Scripted(["yes"])
    with Serving(standin) as url:
        match = r"a request of \d+ bytes or more: Limits\(message_bytes=10\) allows no more"
        fail_with_each(url, RequestRefused, match, limits=Limits(message_bytes=10))
    assert standin.calls == 0


@pytest.mark.parametrize("url", ["127.0.0.1:9", "http://127.0.0.1:9"])
def test_a_closed_client_has_no_connection(url: str) -> None:
    client = Client(url, retries=ONCE)
    for _ in range(2):
        client.close()
        assert not client.is_ready()
        with pytest.raises(ConnectionFailed, match="client was closed"):
            client.complete("Hello")
        with pytest.raises(ConnectionFailed, match="client was closed"):
            client.model_parameters("ensemble")

    async def ask() -> None:
        client = AsyncClient(url, retries=ONCE)
        for _ in range(2):
            await client.aclose()
            assert not await client.is_ready()
            with pytest.raises(ConnectionFailed, match="client was closed"):
                await client.complete("Hello")
            with pytest.raises(ConnectionFailed, match="client was closed"):
                await client.model_parameters("ensemble")

    asyncio.run(ask())


@pytest.mark.parametrize("url", ["127.0.0.1:9", "http://127.0.0.1:9"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key": "secret\n"}, "header 'authorization'"),
        ({"headers": {"X-Team": "ü"}}, "header 'x-team'"),
        ({"headers": {"x team": "us"}}, "header 'x team'"),
        ({"limits": Limits(concurrent_requests=0)}, "concurrent_requests is 0"),
    ],
)
def test_odd_settings_are_refused(url: str, settings: dict[str, Any], message: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(RequestRefused, match=message) as raised:
            kind(url, **settings)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:9", "http://127.0.0.1:9"])
def test_files_for_tls_need_an_address_with_tls(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(RequestRefused, match="is not encrypted: use grpcs:// or https://"):
            kind(url, tls=Tls())


def test_endless_times_of_a_connection() -> None:
    timeouts = Timeouts(connect=math.inf, keepalive=math.inf)
    with Serving(Scripted(["yes"])) as url, Client(url, timeouts=timeouts) as client:
        assert client.complete("Hello").text == "yes"


def test_the_wait_doubles_and_varies() -> None:
    retries = Retries(attempts=10, first_delay=1, longest_delay=5)
    for attempt, longest in [(1, 1), (2, 2), (3, 4), (4, 5), (9, 5)]:
        delays = [retries.delay(attempt, ServerOverloaded(), has_started=False) for _ in range(50)]
        assert all(d is not None and longest / 2 <= d <= longest for d in delays)
        assert len(set(delays)) > 1
    assert retries.delay(10, ServerOverloaded(), has_started=False) is None


def test_a_limit_on_requests_at_once() -> None:
    standin = Scripted([0.02, "yes"])
    limits = Limits(concurrent_requests=2)

    async def ask_all(url: str) -> None:
        async with AsyncClient(url, limits=limits) as client:
            await asyncio.gather(*(client.complete("Hello") for _ in range(8)))

    with Serving(standin) as url:
        asyncio.run(ask_all(url))
        with Client(url, limits=limits) as client, ThreadPoolExecutor(8) as pool:
            list(pool.map(client.complete, ["Hello"] * 8))
    assert standin.calls == 16
    assert standin.max_running == 2


def test_options_pass_through() -> None:
    standin = Scripted(["yes"])
    options = RequestOptions(request_id="mine", priority=3, timeout=1.5, headers={"X-Trace": "abc"})

    async def ask(url: str) -> None:
        async with AsyncClient(url, headers={"X-Team": "us"}) as client:
            await client.complete("Hello", options=options)

    with Serving(standin) as url:
        with Client(f"grpc://{url}", headers={"X-Team": "us"}) as client:
            client.complete("Hello", options=options)
        asyncio.run(ask(url))
    for request, metadata in zip(standin.requests, standin.metadata, strict=True):
        assert request.id == "mine"
        assert request.parameters["priority"].uint64_param == 3
        assert request.parameters["timeout"].int64_param == 1_500_000
        assert (metadata["x-team"], metadata["x-trace"]) == ("us", "abc")
    assert len(standin.requests) == 2


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (RuntimeError("server shutting down: it drains"), ErrorKind.SHUTTING_DOWN),
        (RuntimeError("request refused: no"), ErrorKind.REFUSED),
        (grpc.StatusCode.UNAVAILABLE, ErrorKind.UNREACHABLE),
    ],
)
def test_a_failure_has_its_kind_and_its_requests_id(failure: Any, kind: ErrorKind) -> None:
    standin = Scripted([failure])
    with Serving(standin) as url, Client(url, retries=ONCE) as client:
        with pytest.raises(ClientError) as raised:
            client.complete("Hello")
        assert raised.value.kind is kind
        assert raised.value.request_id == standin.requests[0].id


TRITONS_PINGS = {
    "grpc.http2.min_ping_interval_without_data_ms": 300_000,
    "grpc.http2.max_ping_strikes": 2,
}
"""Triton's own limits, on a connection that is otherwise silent."""


def test_pings_are_no_more_than_triton_takes() -> None:
    seldom = TRITONS_PINGS["grpc.http2.min_ping_interval_without_data_ms"] / 1000
    assert Timeouts().keepalive > seldom
    # The library itself sends at most one a second, so the third is refused after three.
    with Serving(Scripted([10.0, "late"]), options=list(TRITONS_PINGS.items())) as url:
        client = Client(url, timeouts=Timeouts(keepalive=0.2), retries=ONCE)
        with client, pytest.raises(ConnectionFailed, match="Too many pings"):
            client.complete("Hello")
