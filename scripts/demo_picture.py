"""Record `make demo` and draw it as docs/images/demo.svg: python scripts/demo_picture.py.

The lines appear in the order of the recording, with shorter pauses. A reader who wants no motion,
or a program that shows none, gets all of them at once.
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from itertools import accumulate, pairwise
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "demo.svg"
WIDTH = 100
LONGEST_BLOCK = 9
"""Number of lines shown of each step; the middle of longer ones is left out and says so."""
LONGEST_PAUSE = 0.8
"""Seconds between two lines of the picture, at most; the recording's pauses are longer."""
THEME = TerminalTheme((13, 17, 23), (230, 237, 243), [(13, 17, 23)] * 8, [(230, 237, 243)] * 8)
TITLE = "nemotron demo"
LOADED = re.compile(r"@font-face {.*?}\s*", re.DOTALL)
"""What rich's template would load from elsewhere."""
LINE = re.compile(r'<text class="(demo-r\d+)" (x="[^>]*?) clip-path="url\(#demo-line-(\d+)\)"')
"""A text of one line in rich's SVG."""
STYLE = """
    text.line { animation: appear .15s both }
    @keyframes appear { from { opacity: 0 } to { opacity: 1 } }
    @media (prefers-reduced-motion: reduce) { text.line { animation: none } }
    </style>"""


def record(command: list[str]) -> list[tuple[float, str]]:
    """Run a command in a terminal and return its lines with the seconds at which each was whole."""
    master, slave = pty.openpty()
    environment = os.environ | {"COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    start, lines, rest = time.monotonic(), [], b""
    while True:
        try:
            data = os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
        *whole, rest = (rest + data).split(b"\n")
        lines += [(time.monotonic() - start, line.decode().rstrip("\r")) for line in whole]
    if process.wait():
        raise SystemExit("\n".join(line for _, line in lines))
    return lines


def shorten(lines: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Leave out the middle of long steps and the log of the gateway. Steps begin with `$`."""
    steps: list[list[tuple[float, str]]] = [[]]
    for seconds, line in lines:
        if Text.from_ansi(line).plain.startswith("$ "):
            steps.append([])
        if not line.startswith(("gateway: ", "{")):
            steps[-1].append((seconds, line))
    shown = []
    for step in steps:
        left_out = len(step) - LONGEST_BLOCK
        if left_out > 1:
            middle = (step[LONGEST_BLOCK - 3][0], f"  … {left_out + 1} more lines")
            step[LONGEST_BLOCK - 2 : -1] = [middle]
        shown += step
    return shown


def draw(lines: list[tuple[float, str]]) -> str:
    """Return the SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    times = []
    for seconds, line in lines:
        text = Text.from_ansi(line)
        for part in text.wrap(console, WIDTH) or [text]:
            console.print(part)
            times.append(seconds)
    svg = LOADED.sub("", console.export_svg(title=TITLE, theme=THEME, unique_id="demo"))
    svg = svg.replace("</style>", STYLE, 1)
    pauses = [min(LONGEST_PAUSE, after - before) for before, after in pairwise([0.0, *times])]
    shown_at = list(accumulate(pauses))

    def appear(match: re.Match[str]) -> str:
        kind, place, number = match.groups()
        delay = shown_at[min(int(number), len(shown_at) - 1)]
        style = f'class="line {kind}" style="animation-delay:{delay:.1f}s"'
        return f'<text {style} {place} clip-path="url(#demo-line-{number})"'

    return LINE.sub(appear, svg)


if __name__ == "__main__":
    nemotron = str(Path(sys.executable).with_name("nemotron"))
    lines = record([nemotron, "demo", "--exit", "--free-ports"])
    PICTURE.write_text(draw(shorten(lines)), encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)}: {len(lines)} lines in {lines[-1][0]:.0f} s")
