"""The pages' blocks of commands, with the labels in their fences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
LABELS = ("", "demo", "slow", "gpu", "cluster")
"""`demo` runs in `make test`, beside the server of `make demo`, and `slow` in `make test-docs`;
`gpu` and `cluster` name what is needed; without a label a block shows the usage of commands."""
SEPARATORS = "();<>|&\n"
FENCE = re.compile(r"^```(sh|python)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of commands. `page` is its path in the repository, `line` that of its fence."""

    page: str
    line: int
    language: str
    label: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    """Return all blocks of all pages, in their order."""
    return [block for path in PAGES for block in _blocks_of(path)]


def _blocks_of(path: Path) -> Iterator[Block]:
    text = path.read_text()
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        page = path.relative_to(ROOT).as_posix()
        yield Block(page, line, match[1], match[2] or "", match[3])


def script(page: str, label: str) -> str:
    """Return the blocks of one page and label as one script, which ends at the first failure."""
    lines = ["set -euo pipefail"]
    for block in blocks():
        if (block.page, block.label) == (page, label):
            lines.append(f"echo '# {block}'")
            if block.language == "python":
                lines.append(f"python - <<'PYTHON'\n{block.text}PYTHON")
            else:
                lines.append(block.text)
    return "\n".join(lines)


def pages_with(label: str) -> list[str]:
    """Return the pages that have a block with the label."""
    return list(dict.fromkeys(block.page for block in blocks() if block.label == label))


def nemotron_commands(block: Block) -> Iterator[tuple[bool, list[str]]]:
    """Yield the words after each `nemotron` of a block, to the end of that command.

    Says of each whether it begins a command, or follows other words: `mpirun -n 4 nemotron …`. In
    the usage of a command, brackets around options are left out.
    """
    arguments: list[str] | None = None
    is_first, before = True, "\n"
    for word in [*_words(block.text), "\n"]:
        if word == "nemotron" or word[0] in SEPARATORS or word == "--":
            if arguments:
                yield is_first, arguments
            arguments = [] if word == "nemotron" else None
            is_first = before[0] in SEPARATORS
        elif arguments is not None:
            arguments.append(word.strip("[]…"))
        before = word


def _words(text: str) -> Iterator[str]:
    """Yield the words of a script, and its separators and ends of lines as words of their own."""
    text = re.sub(r"(^|\s)#.*", "", text.replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=SEPARATORS)
    lexer.whitespace, lexer.commenters = " \t", ""
    lexer.whitespace_split = True
    yield from (word for word in lexer if word)
