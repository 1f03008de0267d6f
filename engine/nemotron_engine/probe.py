"""A short conversation with the engine's process, to see whether it works.

    python -m nemotron_engine.probe SOCKET SECONDS

ends with status 0 if the engine answers within so many seconds, for whoever else watches it.
"""

from __future__ import annotations

import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_engine.client import new_key
from nemotron_engine.protocol import (
    Ask,
    Chunk,
    ClientMessage,
    Drain,
    EngineMessage,
    Failed,
    Frames,
    Hello,
    Load,
    LoadLora,
    Loras,
    Query,
    Request,
    Step,
    UnloadLora,
    frame,
)

CANARY_IDS = [5]
"""Prompt of the canary: an end of turn."""
READ_BYTES = 1 << 16
Message = TypeVar("Message", Hello, Load, Loras, Step)
WORKING_REFUSALS = (ErrorKind.OVERLOADED.name, ErrorKind.SHUTTING_DOWN.name)
"""Kinds of errors with which a working engine may answer the canary."""


class Probe:
    """A connection of its own, as a context manager.

    Whenever an answer has not come for another `seconds`, it waits on unless `gives_up()`. Every
    method raises `OSError` (`TimeoutError` among them) if the engine does not answer.
    """

    def __init__(
        self, path: Path, seconds: float, gives_up: Callable[[], bool] = lambda: True
    ) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(seconds)
        self._path = path
        self._gives_up = gives_up
        self._frames = Frames(EngineMessage)
        self._messages: deque[ClientMessage | EngineMessage] = deque()
        self._hello: Hello | None = None

    def __enter__(self) -> Probe:
        try:
            self._socket.connect(str(self._path))
        except OSError:
            self._socket.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def hello(self) -> Hello:
        """Return the engine's description, which is its first message."""
        return self._hello or self._next(Hello)

    def load(self) -> Load:
        """Return the engine's load."""
        self._socket.sendall(frame(Query()))
        return self._next(Load)

    def canary(self) -> bool:
        """Have the engine generate or score one token. Return whether it did, or refused for now.

        Raises `NemotronError` if it fails.
        """
        is_reward = self.hello().capabilities.kind == "reward"
        request = Request(
            key=new_key(), input_ids=CANARY_IDS, max_tokens=int(not is_reward), scores=is_reward
        )
        self._socket.sendall(frame(Ask([request])))
        chunk: Chunk | None = None
        while chunk is None or not chunk.finish_reason:
            (chunk,) = self._next(Step).chunks
        if chunk.finish_reason != "error":
            return True
        if chunk.error_kind not in WORKING_REFUSALS:
            raise chunk.failure()
        return False

    def load_lora(self, name: str, folder: str) -> list[str]:
        """Have the engine load a LoRA adapter, and return the names of all.

        Raises `NemotronError` if the engine refuses it.
        """
        return self._change_loras(LoadLora(name, folder))

    def unload_lora(self, name: str) -> list[str]:
        """Have the engine unload a LoRA adapter; see `load_lora`."""
        return self._change_loras(UnloadLora(name))

    def _change_loras(self, message: LoadLora | UnloadLora) -> list[str]:
        self._socket.sendall(frame(message))
        answer = self._next(Loras)
        if answer.error:
            raise NemotronError(answer.error, kind=ErrorKind[answer.error_kind])
        return answer.names

    def drain(self) -> None:
        """Let the engine end when its last request has ended."""
        self._socket.sendall(frame(Drain()))

    def _next(self, message_type: type[Message]) -> Message:
        while True:
            while self._messages:
                message = self._messages.popleft()
                if isinstance(message, Hello):
                    self._hello = message
                if isinstance(message, message_type):
                    return message
                if isinstance(message, Failed):
                    raise ConnectionResetError(message.reason)
            try:
                data = self._socket.recv(READ_BYTES)
                self._messages.extend(self._frames.feed(data))
            except TimeoutError:
                if self._gives_up():
                    raise
                continue
            except NemotronError as error:
                raise ConnectionResetError(str(error)) from error
            if not data:
                raise ConnectionResetError("the engine has closed the connection")


def main(arguments: list[str]) -> int:
    """Return the exit code of the command."""
    path, seconds = arguments
    try:
        with Probe(Path(path), float(seconds)) as probe:
            probe.load()
    except OSError as error:
        print(f"the engine does not answer: {error} [{path}]", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
