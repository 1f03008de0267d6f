"""Kills and stops of the engine's process while a server works."""

from __future__ import annotations

import http.client
import os
import random
import signal
import threading
import time
from typing import Any

from bench.measurements.servers import Server, engine_of

INTERVAL_SECONDS = 45, 75
"""Least and greatest time between two disturbances."""
UNREADY_SECONDS = 5
"""Time in which `/health/ready` of `serve` and gateway must say that the engine does not work."""
READY_SECONDS = 30
"""Time in which they must say that it works again."""
POLL_SECONDS = 0.1
KINDS = (signal.SIGKILL, signal.SIGSTOP)


class Disturbances:
    """Kills and stops the engine of a server in turn, in a thread, and watches its health."""

    seconds_without_engine = UNREADY_SECONDS + READY_SECONDS

    def __init__(self, server: Server, seed: int = 19) -> None:
        self._server = server
        self._ports = {"serve": server.health, "gateway": server.gateway}
        self._generator = random.Random(seed)
        self._thread: threading.Thread | None = None
        self.events: list[dict[str, Any]] = []
        """Each disturbance: the signal, and by port whether it was ready before, and the seconds
        until `/health/ready` said 503, and 200 again. `None` means that it did not in time."""

    def start(self, end: float) -> None:
        """Begin, and leave time before `end`, in seconds of `time.monotonic()`, to recover."""
        self._thread = threading.Thread(target=self._run, args=[end], daemon=True)
        self._thread.start()

    def end(self) -> list[str]:
        """Wait for the last recovery. Returns what took too long."""
        if self._thread is not None:
            self._thread.join()
        return [
            f"after {event['signal']}, {name} did not report {state} in time"
            for event in self.events
            for name in ("serve", "gateway")
            for state in ("unready", "ready")
            if event[name][state] is None
        ]

    def _run(self, end: float) -> None:
        for number in range(10**6):
            due = time.monotonic() + self._generator.uniform(*INTERVAL_SECONDS)
            if due > end - self.seconds_without_engine:
                return
            time.sleep(due - time.monotonic())
            kind = KINDS[number % len(KINDS)]
            ready = [name for name, port in self._ports.items() if self._is_ready(port)]
            os.kill(engine_of(self._server).pid, kind)
            event = {"signal": kind.name, "ready before": ready}
            self.events.append(event | self._watch())

    def _watch(self) -> dict[str, dict[str, float | None]]:
        """Return when both ports became unready, and then ready."""
        start = time.monotonic()
        seen: dict[str, dict[str, float | None]] = {
            name: {"unready": None, "ready": None} for name in self._ports
        }
        while time.monotonic() - start < self.seconds_without_engine:
            for name, port in self._ports.items():
                times, is_ready = seen[name], self._is_ready(port)
                seconds = time.monotonic() - start
                if times["unready"] is None:
                    if not is_ready and seconds < UNREADY_SECONDS:
                        times["unready"] = seconds
                elif is_ready and times["ready"] is None:
                    times["ready"] = seconds
            if all(times["ready"] for times in seen.values()):
                break
            time.sleep(POLL_SECONDS)
        return seen

    def _is_ready(self, port: int) -> bool:
        connection = http.client.HTTPConnection(self._server.address, port, timeout=1)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
