"""The commands of a chat, such as `/system` and `/save`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from nemotron_cli.conversation import Conversation
from nemotron_core.errors import NemotronError

COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class ChatEnds(Exception):
    """Raised by the command that ends the chat."""


def split_command(line: str) -> tuple[str, str] | None:
    """Return the name and the argument of a command, or `None` if the line is none.

    A path is none, and a line that begins with `//` is a message that begins with `/`.

    >>> split_command("/set temperature 0.7")
    ('set', 'temperature 0.7')
    >>> split_command("/usr/bin is a folder"), split_command("//help")
    (None, None)
    """
    match = COMMAND.fullmatch(line.strip())
    return (match[1], (match[2] or "").strip()) if match else None


def run_command(conversation: Conversation, name: str, argument: str) -> str:
    """Carry a command out and return what to show.

    Raises `ChatEnds` for `/exit`, and `NemotronError` if there is no such command or it fails.
    """
    if name not in COMMANDS:
        raise NemotronError("no such command", where=f"/{name}", remedy="/help lists them")
    return COMMANDS[name](conversation, argument)


def _help(_conversation: Conversation, _argument: str) -> str:
    width = max(len(usage) for usage, _ in HELP)
    lines = [f"  {usage:{width}}  {text}" for usage, text in HELP]
    return "\n".join([*lines, "", KEYS])


def _system(conversation: Conversation, argument: str) -> str:
    if argument:
        conversation.system = None if argument == "none" else argument
    return f"system message: {conversation.system or 'none'}"


def _reset(conversation: Conversation, _argument: str) -> str:
    conversation.restart()
    return "a new conversation"


def _save(conversation: Conversation, argument: str) -> str:
    path = _path(argument, "/save")
    conversation.save(path)
    return f"{path}: {len(conversation.messages)} messages"


def _load(conversation: Conversation, argument: str) -> str:
    path = _path(argument, "/load")
    conversation.load(path)
    return f"{path}: {len(conversation.messages)} messages"


def _set(conversation: Conversation, argument: str) -> str:
    name, _, text = argument.partition(" ")
    if name and not text:
        raise NemotronError("no value", where=f"/set {name}", remedy="/set NAME VALUE, or none")
    if name:
        conversation.change(name, text.strip())
    return ", ".join(f"{key} {value}" for key, value in conversation.settings().items())


def _tokens(conversation: Conversation, _argument: str) -> str:
    tokens = conversation.tokens
    return (
        f"last prompt {tokens.prompt}, last answer {tokens.answer}, all answers"
        f" {tokens.all_answers} tokens"
    )


def _exit(_conversation: Conversation, _argument: str) -> str:
    raise ChatEnds


def _path(argument: str, where: str) -> Path:
    if not argument:
        raise NemotronError("no file is named", where=where, remedy=f"{where} FILE.json")
    return Path(argument).expanduser()


HELP = (
    ("/help", "this list"),
    ("/system [TEXT|none]", "show or change the system message"),
    ("/reset", "forget all turns, keep the system message (also /new)"),
    ("/save FILE.json", "write the conversation"),
    ("/load FILE.json", "go on with a conversation"),
    ("/set [NAME VALUE|none]", "show or change max_tokens, temperature, top_p, seed, stop"),
    ("/tokens", "count the tokens of the last turn"),
    ("/exit", "end the chat (also /quit, Ctrl-D)"),
)
"""Usage and text of each command."""
KEYS = "Enter sends, Alt-Enter makes a new line, Ctrl-C stops an answer. //text sends /text."
Command = Callable[[Conversation, str], str]
COMMANDS: dict[str, Command] = {
    "help": _help,
    "system": _system,
    "reset": _reset,
    "new": _reset,
    "save": _save,
    "load": _load,
    "set": _set,
    "tokens": _tokens,
    "exit": _exit,
    "quit": _exit,
}
