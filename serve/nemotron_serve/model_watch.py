"""The watch over Triton: its models' processes, and a canary through each model of clients."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

from nemotron_core.errors import ErrorKind
from nemotron_core.reward import EMPTY_CONVERSATION, ModelKind
from nemotron_serve.server import TritonServer

CANARY_SECONDS = 3.0
"""Time between two canaries through one model."""
SILENT_SECONDS = 5.0
"""Time after which a canary without an answer is suspicious."""
CANARY_LIMIT = 120.0
"""Time limit of a canary's connection."""
_TEXT = {"text_input": "\n", "max_tokens": 1}
CANARIES: dict[ModelKind, dict[str, dict[str, object]]] = {
    "text": {"ensemble": _TEXT, "tensorrt_llm_bls": _TEXT, "generate": _TEXT},
    "reward": {
        "reward": {"messages": json.dumps(EMPTY_CONVERSATION)},
        "reward_model": {"sentences": "\n"},
    },
}
"""The models that are watched, and what is asked of them, by the engine's kind."""
STUB = re.compile(rb"triton_python_backend_stub\0.*?/models/(\w+)/", re.DOTALL)
"""Matches the command line of the process in which a Python model runs."""


class ModelWatch:
    """Notices when a Python model has died, or answers no more while the engine does.

    Triton 2.51 does not: after the end of a model's process, its running requests never end, later
    ones fail, and Triton's own `/v2/health/ready` stays 200. `engine_answers` returns whether the
    engine generates a token now. A context manager.
    """

    def __init__(
        self, server: TritonServer, engine_answers: Callable[[], bool], kind: ModelKind
    ) -> None:
        self._server = server
        self._engine_answers = engine_answers
        self._models = model_processes(server.process.pid)
        self._closing = threading.Event()
        self._canaries = [
            _Canary(server, model, inputs, self._closing)
            for model, inputs in CANARIES[kind].items()
        ]

    def __enter__(self) -> ModelWatch:
        for canary in self._canaries:
            canary.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing.set()  # the threads end with their canaries

    @property
    def has_answered(self) -> bool:
        """Whether each model that is watched has answered once."""
        return all(canary.answers for canary in self._canaries)

    def failure(self) -> str | None:
        """Return why Triton must be started again, or `None` if it need not."""
        if self._server.process.poll() is not None:
            return f"Triton ended with status {self._server.process.returncode}"
        for process, name in self._models.items():
            if model_of(process) != name:
                return f"the process of the model {name} has ended"
        for canary in self._canaries:
            if canary.error is not None:
                return f"the model {canary.model} fails: {canary.error}"
            if canary.is_silent() and canary.is_overtaken:
                return f"the model {canary.model} answers no more"
            # The engine takes requests in turn, so a canary of its own that was sent later and is
            # answered shows whose fault it is. The answer to the earlier one has another second.
            canary.is_overtaken = canary.is_silent() and self._engine_answers()
        return None


class _Canary(threading.Thread):
    """Sends requests for one token, or for scores, through one model."""

    def __init__(
        self,
        server: TritonServer,
        model: str,
        inputs: dict[str, object],
        closing: threading.Event,
    ) -> None:
        super().__init__(name=f"canary {model}", daemon=True)
        self.model = model
        self.answers = 0
        self.is_overtaken = False
        """Whether the engine has answered a canary that was sent after this one."""
        self.error: str | None = None
        """Triton's own words about a model that no longer works."""
        self._server = server
        self._inputs = inputs
        self._closing = closing
        self._sent_seconds: float | None = None

    def is_silent(self) -> bool:
        """Return whether a canary has waited suspiciously long."""
        sent = self._sent_seconds
        return sent is not None and time.monotonic() - sent > SILENT_SECONDS

    def run(self) -> None:
        """Send canaries until the end. An error of a known kind is the engine's, and will do."""
        while not self._closing.is_set():
            self._sent_seconds = time.monotonic()
            status, text = self._server.generate(self.model, self._inputs, CANARY_LIMIT)
            if status not in (0, HTTPStatus.OK) and ErrorKind.of_text(text) is None:
                self.error = text
            if status:
                self._sent_seconds = None
                self.answers += 1
            self._closing.wait(CANARY_SECONDS if status else 0.1)


def model_processes(triton: int) -> dict[int, str]:
    """Return the process id and the name of each Python model of a Triton process."""
    children: list[str] = []
    for path in Path(f"/proc/{triton}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            children += path.read_text().split()
    return {int(child): name for child in children if (name := model_of(int(child)))}


def model_of(process: int) -> str | None:
    """Return the name of the Python model that runs in a process, or `None` if none runs."""
    try:
        stub = STUB.search(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return None
    return stub[1].decode() if stub else None
