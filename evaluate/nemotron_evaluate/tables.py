"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table.

    >>> table(("model", "score"), [["A|B", "1"]])
    ['| model | score |', '|---|---|', '| A&#124;B | 1 |']
    """
    lines = [head, *rows]
    texts = ["| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |"
             for line in lines]  # fmt: skip
    return [texts[0], "|" + "---|" * len(head), *texts[1:]]


def code(text: str) -> str:
    r"""Return a text of any content as inline code on one line.

    >>> code("a\nb `c`")
    "`a⏎b 'c'`"
    """
    shown = "".join("⏎" if c == "\n" else c if c.isprintable() else "�" for c in text)
    return "`" + shown.replace("`", "'") + "`"
