"""What the pages quote is still the program's own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "convert", "build", "engine", "serve", "gateway", "client", "data", "evaluate")


def texts() -> Iterator[str]:
    """Every string of the product, with `…` for what is filled in; the Slurm files as they are."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
    for path in (ROOT / "slurm").iterdir():
        yield re.sub(r"\$(\w+|{[^}]+})", "…", path.read_text())


def quoted_messages() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    return re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)


def test_every_message_is_the_programs_own() -> None:
    known = "\0".join(texts())
    messages = quoted_messages()
    assert len(messages) > 30
    assert [one for one in messages if one not in known] == []


def test_clients_of_others_have_the_versions_that_were_tried() -> None:
    """docs/clients.md and the environments of `make test-clients` agree."""
    page = (ROOT / "docs" / "clients.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \| \d{4}-\d\d-\d\d \| yes \|", page, re.MULTILINE)
    tried = {}
    for names, versions in rows:
        tried |= dict(zip(names.split(", "), versions.split(", "), strict=True))
    environments = (ROOT / "tests" / "clients" / "environments").glob("*.txt")
    lines = [line for path in environments for line in path.read_text().splitlines()]
    pinned = dict(re.sub(r"\[.*\]", "", line).split("==") for line in lines)
    assert len(pinned) > 8
    assert tried == pinned
