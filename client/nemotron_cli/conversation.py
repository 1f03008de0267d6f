"""A conversation with a model: its turns, its settings, and its file."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_core.generation import Generation, Piece

Message = dict[str, str]
SETTINGS = {"max_tokens": int, "temperature": float, "top_p": float, "seed": int}
"""Settings that can be changed during a chat, with their types. `stop` is one more, a text."""
ROLES = ("system", "user", "assistant")


class Server(Protocol):
    """What answers: a client of Triton, or one of OpenAI's API."""

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], generation: Generation
    ) -> Generator[Piece, None, None]: ...


@dataclass
class Tokens:
    """Numbers of tokens, as the server counts them."""

    prompt: int = 0
    answer: int = 0
    all_answers: int = 0


@dataclass
class Conversation:
    """All turns so far. A turn is kept once its answer has any text, even if it was stopped."""

    server: Server
    generation: Generation
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    tokens: Tokens = field(default_factory=Tokens)
    finish_reason: str = ""
    """Why the last answer ended: "stop", "length", or empty if it was stopped."""

    @property
    def messages(self) -> list[Message]:
        """The system message, if there is one, and all turns."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, *self.turns]

    def restart(self) -> None:
        """Forget every turn but the system message."""
        self.turns = []

    def answer(self, question: str) -> Generator[str, None, None]:
        """Yield the text of the answer, piece by piece. Raises `ClientError`."""
        asked: Message = {"role": "user", "content": question}
        text, self.finish_reason = "", ""
        self.tokens.prompt = self.tokens.answer = 0
        try:
            for piece in self.server.stream_chat([*self.messages, asked], self.generation):
                text += piece.text
                self._count(piece)
                if piece.text:
                    yield piece.text
        finally:
            self.tokens.all_answers += self.tokens.answer
            if text:
                self.turns = [*self.turns, asked, {"role": "assistant", "content": text}]

    def why_empty(self) -> str:
        """Return why the last answer has no text."""
        reasons = {
            "stop": "the model ended its turn at once, or a stop string came first",
            "length": f"max_tokens is {self.generation.max_tokens}",
            "cancelled": "the server stopped it",
        }
        reason = reasons.get(self.finish_reason, "the server does not say why")
        return f"the answer is empty: {reason}"

    def change(self, name: str, text: str) -> None:
        """Change a setting; the text `none` leaves it to the server. Raises `NemotronError`."""
        if name == "stop":
            words = () if text == "none" else (*self.generation.stop_words, text)
            self.generation = replace(self.generation, stop_words=words)
        elif text == "none" and name in SETTINGS:
            default = getattr(Generation(), name)
            self.generation = replace(self.generation, **{name: default})
        else:
            value = _value(name, text, f"/set {name}")
            self.generation = replace(self.generation, **{name: value})

    def settings(self) -> dict[str, object]:
        """Return the settings that are set."""
        values = {name: getattr(self.generation, name) for name in SETTINGS}
        values["stop"] = list(self.generation.stop_words) or None
        return {name: value for name, value in values.items() if value is not None}

    def save(self, path: Path) -> None:
        """Write the messages and settings as JSON. Raises `NemotronError`."""
        content = {"messages": self.messages, "settings": self.settings()}
        write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    def load(self, path: Path) -> None:
        """Replace the turns, the system message and the settings by those of a file.

        A file without settings changes none. Raises `NemotronError`, after which nothing is
        changed.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
        except ValueError as error:
            raise NemotronError(f"no JSON: {error}", where=path) from error
        messages = content.get("messages") if isinstance(content, dict) else None
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise NemotronError(
                "no conversation",
                where=path,
                remedy='it is {"messages": [{"role": …, "content": …}]}',
            )
        if "settings" in content:
            self.generation = _generation(content["settings"], path)
        self.system = next((m["content"] for m in messages if m["role"] == "system"), None)
        self.turns = [m for m in messages if m["role"] != "system"]

    def _count(self, piece: Piece) -> None:
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.tokens.prompt = piece.num_input_tokens or self.tokens.prompt
        self.tokens.answer = piece.num_output_tokens or self.tokens.answer


def _value(name: str, text: str, where: object) -> Any:
    """Return the value of a setting of `SETTINGS`. Raises `NemotronError`."""
    if name not in SETTINGS:
        known = ", ".join((*SETTINGS, "stop"))
        raise NemotronError("no such setting", where=where, remedy=f"use one of {known}")
    try:
        return SETTINGS[name](text)
    except ValueError as error:
        raise NemotronError(f"{text!r} is no {SETTINGS[name].__name__}", where=where) from error


def _generation(settings: object, path: Path) -> Generation:
    """Return the parameters that a file's settings stand for. Raises `NemotronError`."""
    if not isinstance(settings, dict):
        raise NemotronError("the settings are no object of JSON", where=path)
    words = settings.get("stop", [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise NemotronError("stop is no list of texts", where=path)
    values: dict[str, Any] = {
        name: _value(name, str(value), f"{path}, {name}")
        for name, value in settings.items()
        if name != "stop"
    }
    return replace(Generation(stop_words=tuple(words)), **values)


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ROLES
        and isinstance(message.get("content"), str)
    )
