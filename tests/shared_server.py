"""The server that tests share, watched as `nemotron serve` watches its own.

Triton 2.51 ended once by itself, with an assertion of its gRPC library, while tests cancelled
streams; every later test of the run then failed. `nemotron serve` starts such a Triton again. So
does this, and the test that was cut off by this very assertion runs once more. Whatever else ends
Triton is a failure.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

from nemotron_core.errors import NemotronError
from tests.waiting import until

if TYPE_CHECKING:
    from nemotron_build.profile import Profile
    from nemotron_serve.model_server import ModelServer

CHECK_SECONDS = 1.0
KNOWN_END = "ASSERTION FAILED: prior > 0"


class SharedServer:
    """The one of this process, and why Triton could not be started again."""

    running: ModelServer | None = None
    failure: Exception | None = None

    @classmethod
    def has_lost_triton(cls) -> bool:
        """Return whether Triton has ended and may still come back."""
        is_gone = cls.running is not None and cls.running.triton.process.poll() is not None
        return is_gone and cls.failure is None

    @classmethod
    def known_ends(cls) -> int:
        """Return how often Triton has ended by the assertion."""
        return cls.running.log.read_text(errors="replace").count(KNOWN_END) if cls.running else 0


@contextmanager
def shared_server(engine: Path, profile: Profile) -> Iterator[ModelServer]:
    """Serve an engine until the tests end."""
    from nemotron_serve.model_server import ModelServer

    ended = threading.Event()

    def watch(server: ModelServer) -> None:
        while not ended.wait(CHECK_SECONDS):
            if SharedServer.has_lost_triton():
                try:
                    server.check()
                except NemotronError as error:
                    SharedServer.failure = error

    with ModelServer(engine, profile) as server:
        SharedServer.running = server
        thread = threading.Thread(target=watch, args=[server])
        thread.start()
        try:
            yield server
        finally:
            SharedServer.running = None
            ended.set()
            thread.join()


def run_again_if_triton_ended(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Run a test, and once more if it failed while Triton ended by itself."""
    before = SharedServer.known_ends()
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    if any(report.failed for report in reports) and SharedServer.known_ends() > before:
        until(lambda: not SharedServer.has_lost_triton())
        print(f"\nTriton ended by itself during {item.nodeid}, which runs again")
        item._initrequest()  # type: ignore[attr-defined]  # as pytest-rerunfailures does
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
