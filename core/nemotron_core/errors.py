"""The one way a command of this project fails.

Every expected failure is a `NemotronError`: what happened, where, and what to do next. The command
line prints it as a single line and leaves with its exit code; nothing else is caught there, so a
traceback always means a bug.
"""

from __future__ import annotations


class NemotronError(Exception):
    """An expected failure, told to a person in one line.

    >>> print(NemotronError("TP 3 does not divide 16 heads", where="--tp", remedy="use 1, 2 or 4"))
    TP 3 does not divide 16 heads [--tp]: use 1, 2 or 4
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.what
        if self.where is not None:
            text += f" [{self.where}]"
        if self.remedy is not None:
            text += f": {self.remedy}"
        return "".join(
            # What a checkpoint names must not move the cursor of the terminal it is told on.
            c if c.isprintable() else c.encode("unicode_escape").decode()
            for c in " ".join(text.split())
        )
