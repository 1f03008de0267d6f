"""The site: built strictly, with every page, searchable without a network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.blocks import ROOT

MKDOCS = Path(sys.executable).with_name("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [MKDOCS, "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there_and_in_the_navigation(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 20
    start = (site / "index.html").read_text()
    for page in pages:
        assert (site / page.with_suffix(".html")).exists()
        assert f'href="{page.with_suffix(".html")}"' in start


def test_the_search_needs_no_network(site: Path) -> None:
    """It runs in the browser, with an index that is a file of the site."""
    index = (site / "search" / "search_index.json").read_text()
    assert "long_answers" in index  # of a generated page
    assert "perf_analyzer" in index


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    tag = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(http[^"]*)')
    loaded = {url for path in site.rglob("*.html") for url in tag.findall(path.read_text())}
    assert {urlsplit(url).hostname for url in loaded} == {"img.shields.io"}  # the badges


def test_the_reference_has_every_verb_and_key(site: Path) -> None:
    from nemotron_cli.main import VERBS
    from nemotron_gateway.settings import Limits

    verbs = (site / "reference" / "command-line.html").read_text()
    assert all(f"nemotron {verb}</h2>" in re.sub("<a.*?</a>", "", verbs) for verb in VERBS)
    settings = (site / "reference" / "gateway-settings.html").read_text()
    assert all(f"limits.{name}" in settings for name in Limits.model_fields)
    assert json.dumps(8 << 20) in settings
