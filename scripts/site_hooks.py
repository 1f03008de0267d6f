"""Hooks of mkdocs: the repository's own files and the reference as pages, and links that fit."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.reference import PAGES  # noqa: E402  # the repository is no package

PAGES_AT_THE_ROOT = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
"""Pages of the site that are files at the top of the repository."""
LINK = re.compile(
    r'(?P<start>\]\(|href="|src=")(?P<target>[^)"#:]+)(?P<anchor>#[^)"]*)?(?P<end>[)"])'
)
OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./[^)]*|LICENSE)\)")
"""A link to a file of the repository that is no page; the site shows its text."""
FENCE = re.compile(r"^```(\w+) \S+$", re.MULTILINE)
"""The fence of a block with a label for the tests."""


def on_config(config: Any) -> Any:
    """Add the reference pages, and pages that no list has, to the navigation."""
    listed = set(_listed(config.nav))
    sections = {name: pages for entry in config.nav for name, pages in entry.items()}
    sections["Reference"] += list(PAGES)
    for path in sorted(Path(config.docs_dir).rglob("*.md")):
        name = path.relative_to(config.docs_dir).as_posix()
        if name not in listed:
            sections["How-to"].append(name)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    for name, source in PAGES_AT_THE_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=LINK.sub(_link, text)))
    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def on_page_markdown(markdown: str, **_others: Any) -> str:
    """Leave out what only the repository or its tests understand."""
    return FENCE.sub(r"```\1", OUTSIDE.sub(r"\1", markdown))


def _link(match: re.Match[str]) -> str:
    """Return a link of a file at the top of the repository as one of the site."""
    target = match["target"].removeprefix("docs/")
    for page, source in PAGES_AT_THE_ROOT.items():
        if target == source:
            target = page
    if match["start"] == 'href="' and target.endswith(".md"):
        target = target.removesuffix(".md") + ".html"  # mkdocs does not look into HTML
    return f"{match['start']}{target}{match['anchor'] or ''}{match['end']}"


def _listed(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for pages in entry.values():
                yield from [pages] if isinstance(pages, str) else _listed(pages)
