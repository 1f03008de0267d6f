"""Chat requests through the gateway while hundreds of other connections are open and send nothing.

Half of these connections are silent, half send a header byte by byte. The gateway closes each of
them after its time for headers, and another one is opened at once. The same requests are sent
without and with them, in turn in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from bench.measurements.servers import serving
from bench.measurements.timing import in_turn, summary
from nemotron_gateway.settings import Timeouts

WAYS = ("alone", "beside")
BYTE_SECONDS = 1.0
"""Time between two bytes of a header."""
LATE_SECONDS = 1.0
"""A connection counts as closed too late after the gateway's own time and this."""
LONGEST_RATIO = 1.5
BODY = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine folder of the CPU lane")
    parser.add_argument("--connections", type=int, default=500, help="default 500")
    parser.add_argument("--requests", type=int, default=200, help="of each round, default 200")
    parser.add_argument("--at-once", type=int, default=8, help="requests at once, default 8")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    medians: dict[str, list[float]] = {way: [] for way in WAYS}
    closed: list[float] = []
    failures = 0
    with serving(options.engine) as server:
        for run, way in in_turn(options.runs + 1, WAYS):
            connections = options.connections if way == "beside" else 0
            seconds, failed, ages = asyncio.run(measure_round(server.gateway, options, connections))
            print(f"{way}: {statistics.median(seconds) * 1e3:.1f} ms, {failed} failed", flush=True)
            failures += failed
            closed += ages
            if run:
                medians[way].append(statistics.median(seconds))
    pairs = zip(medians["beside"], medians["alone"], strict=True)
    ratios = summary([beside / alone for beside, alone in pairs])
    faults = []
    if failures:
        faults.append(f"{failures} requests failed")
    if ratios["median"] > LONGEST_RATIO:
        faults.append(f"the median is {ratios['median']:.2f} of the one without connections")
    if max(closed) > Timeouts().headers + LATE_SECONDS:
        faults.append(f"a connection was closed after {max(closed):.1f} s")
    return {
        "seconds": {way: summary(values) for way, values in medians.items()},
        "ratio": ratios,
        "closed_after_seconds": summary(closed),
        "connections_closed": len(closed),
        "failures": failures,
        "faults": faults,
    }


async def measure_round(
    port: int, options: argparse.Namespace, connections: int
) -> tuple[list[float], int, list[float]]:
    """Return the seconds of each request, the failures, and the ages of connections at their end.

    A round with connections lasts until the first of them have been closed.
    """
    per_worker = options.requests // options.at_once
    async with held(port, connections) as ages:
        workers = (ask(port, per_worker) for _ in range(options.at_once))
        results = [seconds for part in await asyncio.gather(*workers) for seconds in part]
        while len(ages) < connections:
            await asyncio.sleep(BYTE_SECONDS)
    succeeded = [seconds for seconds in results if seconds is not None]
    return succeeded, len(results) - len(succeeded), ages


@asynccontextmanager
async def held(port: int, count: int) -> AsyncIterator[list[float]]:
    """Keep `count` connections open inside the context; yields the ages of those that ended."""
    ages: list[float] = []
    holders = [asyncio.ensure_future(hold(port, n % 2 == 1, ages)) for n in range(count)]
    await asyncio.sleep(BYTE_SECONDS if count else 0)
    try:
        yield ages
    finally:
        for holder in holders:
            holder.cancel()
        await asyncio.gather(*holders, return_exceptions=True)


async def hold(port: int, trickles: bool, ages: list[float]) -> None:
    """Open a connection, and another one whenever the server closes it."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        opened = time.monotonic()
        try:
            if trickles:
                writer.write(b"GET /health/live HTTP/1.1\r\nX: ")
            while not await is_closed(reader):
                if trickles:
                    writer.write(b"a")
            ages.append(time.monotonic() - opened)
        finally:
            writer.close()


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Wait for the end of a connection for a while, and return whether it has come."""
    with suppress(asyncio.TimeoutError):
        try:
            return not await asyncio.wait_for(reader.read(1000), BYTE_SECONDS)
        except ConnectionError:
            return True
    return False


async def ask(port: int, count: int) -> list[float | None]:
    """Send requests one after the other on one connection. A failed one is `None`."""
    data = json.dumps(BODY).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}"
    request = f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + data
    seconds: list[float | None] = []
    with suppress(OSError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while len(seconds) < count:
            start = time.monotonic()
            writer.write(request)
            headers = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(headers.partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            took = time.monotonic() - start
            seconds.append(took if headers.startswith(b"http/1.1 200 ") else None)
        writer.close()
    return seconds + [None] * (count - len(seconds))
