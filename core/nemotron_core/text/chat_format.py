"""The parts of a prompt as data, and the file that carries those of a model tuned on others.

The model card's format is `CARD`. A tuned model whose format is another one has it in a file beside
its tokenizer, in every checkpoint and engine, so each reader of the tokenizer has it, too.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nemotron_core.errors import NemotronError

CONTROL_PREFIX = "<extra_id_"
"""Prefix of every control piece of this model. `<extra_id_0>` opens the prompt; `<extra_id_1>`
opens each turn and thereby ends the turn before it."""
FILE_NAME = "chat_format.json"
MAX_CHARACTERS = 1000
"""Limit of a part's length."""
_CONTROL = re.compile(re.escape(CONTROL_PREFIX) + "[0-9]+>")


@dataclass(frozen=True)
class ChatFormat:
    """What stands between the messages of a conversation."""

    no_system: str
    """What a prompt without a system message begins with."""
    system_start: str
    """What stands before the system messages, which are joined by newlines."""
    system_end: str
    user_start: str
    user_end: str
    assistant_start: str
    assistant_end: str

    @property
    def control_pieces(self) -> list[str]:
        """The control pieces in it, each once."""
        return sorted({piece for text in asdict(self).values() for piece in _CONTROL.findall(text)})

    @property
    def end_piece(self) -> str:
        """The control piece that the model generates after an answer. There must be no fault."""
        piece = _CONTROL.search(self._after_answer)
        assert piece is not None
        return piece[0]

    @property
    def closing(self) -> str:
        """The text that the model generates before it: "" or a newline."""
        return self._after_answer[: self._after_answer.index(self.end_piece)]

    @property
    def _after_answer(self) -> str:
        return self.assistant_end + self.user_start

    @property
    def fault(self) -> str:
        """Why no conversation can be given in this format, or an empty string.

        Turns must be divided by control pieces: only these cannot be forged in a message, and only
        such a piece ends an answer as a token.
        """
        for name, text in asdict(self).items():
            if len(text) > MAX_CHARACTERS:
                return f"{name} has {len(text)} characters"
            if "\0" in text or _is_broken(text):
                return f"{name} has a character that no text can have"
            if CONTROL_PREFIX in _CONTROL.sub("", text):
                return f"{name} has a part of a control piece"
        for name, text in (
            ("the assistant's", self.user_end + self.assistant_start),
            ("the user's", self._after_answer),
        ):
            if not _CONTROL.search(text):
                return f"{name} turn begins with {text!r}, which is no control piece"
        if self.closing not in ("", "\n"):
            return f"an answer ends with {self.closing!r}, which is not a newline or nothing"
        return ""

    def write(self, folder: Path) -> None:
        """Write `chat_format.json`. Raises `NemotronError` if that is not possible."""
        path = folder / FILE_NAME
        try:
            path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", "utf-8")
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=path) from error

    @classmethod
    def read(cls, folder: Path) -> ChatFormat:
        """Return the format of a folder with a tokenizer: `CARD` without a file.

        Raises `NemotronError` if the file is not valid.
        """
        path = folder / FILE_NAME
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return CARD
        except (OSError, ValueError, RecursionError) as error:
            raise NemotronError(f"cannot be read: {error}", where=path) from error
        names = {field.name for field in fields(cls)}
        if (
            not isinstance(content, dict)
            or set(content) != names
            or not all(isinstance(text, str) for text in content.values())
        ):
            raise NemotronError(
                f"must have the texts {', '.join(sorted(names))}, and nothing else",
                where=path,
                remedy="convert the model again",
            )
        chat_format = cls(**content)
        if fault := chat_format.fault:
            raise NemotronError(fault, where=path, remedy="convert the model again")
        return chat_format


def _is_broken(text: str) -> bool:
    """Return whether a text has lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


CARD = ChatFormat(
    no_system=CONTROL_PREFIX + "0>System\n\n",
    system_start=CONTROL_PREFIX + "0>System\n",
    system_end="\n\n",
    user_start=CONTROL_PREFIX + "1>User\n",
    user_end="\n",
    assistant_start=CONTROL_PREFIX + "1>Assistant\n",
    assistant_end="\n",
)
"""The format of Nemotron-4-Instruct."""
