"""The terminal of a chat: an input with history and pasted lines, answers as Markdown."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from nemotron_cli.conversation import Conversation
from nemotron_core.errors import NemotronError

REFRESHES = 8
"""Number of times per second that a growing answer is drawn."""


def make_session(history: Path | None) -> PromptSession[str]:
    """Return an input for which Enter sends, and Alt-Enter and pasted texts make new lines.

    Raises `NemotronError` if the file of the history cannot be written.
    """
    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _new_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    lines: History = InMemoryHistory()
    if history is not None:
        try:
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(mode=0o600)
        except OSError as error:
            raise NemotronError(
                f"cannot write: {error.strerror}", where=history, remedy="add --no-history"
            ) from error
        lines = FileHistory(str(history))
    return PromptSession(multiline=True, key_bindings=bindings, history=lines)


def show_markdown(conversation: Conversation, question: str) -> None:
    """Draw the answer as Markdown while it is generated.

    While it grows, only as much as fits on the screen is drawn; at the end, all of it.
    """
    console = Console()
    text = ""
    try:
        with (
            closing(conversation.answer(question)) as texts,
            Live(console=console, refresh_per_second=REFRESHES, transient=True) as live,
        ):
            for piece in texts:
                text += piece
                live.update(Markdown(text))
    finally:
        if text:
            console.print(Markdown(text))
    if not text:
        console.print(f"[{conversation.why_empty()}]", markup=False)
    elif conversation.finish_reason == "length":
        limit = conversation.generation.max_tokens
        console.print(f"[cut off: max_tokens is {limit}; /set max_tokens N]", markup=False)
