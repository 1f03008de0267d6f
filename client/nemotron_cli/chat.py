"""The chat in a terminal, or of the lines of standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from nemotron_cli.chat_commands import KEYS, ChatEnds, run_command, split_command
from nemotron_cli.conversation import Conversation
from nemotron_client.exceptions import ClientError
from nemotron_core.errors import NemotronError

HELP = f"{KEYS} /help lists the commands."
STATE_FOLDER = Path("nemotron") / "chat_history"
Show = Callable[[Conversation, str], None]
"""Ask a question and show the answer while it is generated."""


def ask(conversation: Conversation, question: str) -> None:
    """Print the answer to one question as plain text, while it is generated."""
    is_empty = True
    with closing(conversation.answer(question)) as texts:
        for text in texts:
            is_empty = False
            sys.stdout.write(text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if is_empty:
        print(f"nemotron: {conversation.why_empty()}", file=sys.stderr, flush=True)


def answer_lines(conversation: Conversation) -> None:
    """Answer each line of standard input, until it ends. Raises `ClientError`."""
    for line in sys.stdin:
        try:
            answer_line(conversation, line.strip(), ask)
        except ChatEnds:
            return


def answer_line(conversation: Conversation, line: str, show: Show) -> None:
    """Carry out a command, or ask a question and `show` the answer.

    Raises `ChatEnds`, `NemotronError` if a command fails, and `ClientError`.
    """
    if command := split_command(line):
        shown = run_command(conversation, *command)
        print(shown, file=sys.stdout if sys.stdin.isatty() else sys.stderr)
    elif line:
        show(conversation, line.removeprefix("/") if line.startswith("//") else line)


def talk(conversation: Conversation, *, history: Path | None, markdown: bool) -> None:
    """Talk in the terminal until `/exit` or Ctrl-D. `history` keeps the lines for the next time."""
    from nemotron_cli.terminal import make_session, show_markdown  # noqa: PLC0415

    show = show_markdown if markdown else ask
    session = make_session(history)
    print(HELP)
    while True:
        try:
            line = session.prompt("> ").strip()
        except KeyboardInterrupt:  # it clears the input
            continue
        except EOFError:
            return
        try:
            answer_line(conversation, line, show)
        except ChatEnds:
            return
        except KeyboardInterrupt:
            print("[stopped]")
        except (NemotronError, ClientError) as error:
            print(f"[{error}]")


def history_path() -> Path:
    """Return the usual file of the history, by the XDG base directories."""
    folder = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(folder) / STATE_FOLDER
