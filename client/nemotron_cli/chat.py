"""A conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing

from nemotron_client.client import Client
from nemotron_client.exceptions import RequestRefused
from nemotron_core.generation import Generation

HELP = "Ctrl-C stops an answer, /new starts a new conversation, /exit or Ctrl-D ends the chat."


class Conversation:
    """All turns so far. A turn is kept once its answer has any text, even if it was stopped."""

    def __init__(self, client: Client, generation: Generation, system: str | None) -> None:
        self._client = client
        self._generation = generation
        self._system = [{"role": "system", "content": system}] if system is not None else []
        self._turns: list[dict[str, str]] = []

    def restart(self) -> None:
        """Forget every turn but the system message."""
        self._turns = []

    def answer(self, question: str) -> Generator[str, None, None]:
        """Yield the text of the answer, piece by piece. Raises `ClientError`."""
        turns = [*self._turns, {"role": "user", "content": question}]
        text = ""
        try:
            for piece in self._client.stream_chat([*self._system, *turns], self._generation):
                text += piece.text
                yield piece.text
        finally:
            if text:
                self._turns = [*turns, {"role": "assistant", "content": text}]


def ask(conversation: Conversation, question: str) -> None:
    """Print the answer to one question while it is generated."""
    with closing(conversation.answer(question)) as texts:
        for text in texts:
            sys.stdout.write(text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def talk(conversation: Conversation) -> None:
    """Answer each line of standard input until it ends. On a terminal, show a prompt."""
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401, PLC0415  # gives input() history and line editing

        print(HELP)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            break
        if line == "/exit":
            break
        if line == "/new":
            conversation.restart()
        elif line:
            _turn(conversation, line, interactive=interactive)
    if interactive:
        print()


def _turn(conversation: Conversation, line: str, *, interactive: bool) -> None:
    try:
        ask(conversation, line)
    except KeyboardInterrupt:
        if not interactive:
            raise
        print(" [stopped]")
    except RequestRefused as error:
        if not interactive:
            raise
        print(f"[{error}]")
