"""Count the lines of product code, without blank lines, comments and docstrings.

    python scripts/code_lines.py [--against COMMIT]

Product code is every Python file that is not a test, a measurement or a script. `--against` counts
the files of a commit as well, whatever its folders are, and exits with 1 if it had fewer lines.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
NO_PRODUCT = ("tests", "scripts", "bench/measurements")
"""Folders of Python files that are not product code."""
BENCH_PACKAGE = "bench/nemotron_bench"
"""Product code of the folder `bench`; measurements stood beside it in early commits."""
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip
"""Tokens that do not make a line a line of code."""


def is_product(path: str) -> bool:
    """Return whether a path in the repository is a file of product code."""
    folders = [str(parent) for parent in PurePosixPath(path).parents]
    return (
        path.endswith(".py")
        and not any(folder in folders for folder in NO_PRODUCT)
        and ("bench" not in folders or BENCH_PACKAGE in folders)
    )


def code_lines(source: str) -> int:
    r"""Return the number of lines with code in a Python file.

    >>> code_lines("# a comment\nx = [\n    1,\n]\n")
    3
    """
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def count_rooms(paths: Iterable[str], read: Callable[[str], str]) -> Counter[str]:
    """Return the lines of code by room, which is the first folder of a path."""
    rooms: Counter[str] = Counter()
    for path in paths:
        if is_product(path):
            rooms[PurePosixPath(path).parts[0]] += code_lines(read(path))
    return rooms


def git(*arguments: str) -> str:
    """Return the output of a git command."""
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def count_now() -> Counter[str]:
    """Return the counts of the working tree: tracked files and new files that are not ignored."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    paths = [name for name in names if (ROOT / name).is_file()]
    return count_rooms(paths, lambda path: (ROOT / path).read_text(encoding="utf-8"))


def count_at(commit: str) -> Counter[str]:
    """Return the counts of a commit."""
    paths = git("ls-tree", "-r", "-z", "--name-only", commit).split("\0")
    return count_rooms(paths, lambda path: git("show", f"{commit}:{path}"))


def main() -> int:
    """Print the counts. Returns 1 if there are more lines than at the commit to compare with."""
    parser = argparse.ArgumentParser(description="Count the lines of product code by room.")
    parser.add_argument("--against", metavar="COMMIT", help="commit to compare with")
    options = parser.parse_args()
    counts = [count_now()]
    if options.against:
        counts.insert(0, count_at(options.against))
    totals = [rooms.total() for rooms in counts]
    for room in sorted(set().union(*counts)):
        print_row(room, [rooms[room] for rooms in counts])
    print_row("total", totals)
    return int(totals[-1] > totals[0])


def print_row(name: str, lines: list[int]) -> None:
    """Print the lines of a room, before and after if there are two counts."""
    print(f"{name:20}" + " →".join(f"{count:8,}" for count in lines))


if __name__ == "__main__":
    sys.exit(main())
