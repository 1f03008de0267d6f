"""What `nemotron bench` says about a draft, from the server's metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from nemotron_bench.draft import DraftCounts, read_counts
from nemotron_bench.load import Level
from nemotron_bench.report import markdown
from nemotron_bench.results import measure
from nemotron_core.errors import NemotronError
from tests.bench.test_statistics import outcome, report

PAGE = """# HELP nemotron_draft_steps_total Steps in which an answer got tokens with a draft
# TYPE nemotron_draft_steps_total counter
nemotron_draft_steps_total 100.000000
nemotron_draft_proposed_tokens_total{x="y"} 390.000000
nemotron_draft_accepted_tokens_total 156.000000
nv_energy_consumption 3.5
"""


@pytest.fixture
def pages() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_counts_of_a_page(pages: str) -> None:
    counts = read_counts(f"{pages}/metrics")
    assert counts == read_counts(pages) == DraftCounts(steps=100, proposed=390, accepted=156)
    assert str(counts) == "2.56 tokens per step, 40% of the proposed right"
    later = DraftCounts(steps=110, proposed=420, accepted=176)
    assert later.since(counts) == DraftCounts(steps=10, proposed=30, accepted=20)
    assert counts.since(counts) is None


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("/other", "HTTP 404"),
        ("https://a", "is no page of metrics"),
        ("http://127.0.0.1:9", "cannot be read"),
    ],
)
def test_pages_that_are_none(url: str, error: str, pages: str) -> None:
    with pytest.raises(NemotronError, match=error):
        read_counts(url if "//" in url else pages + url)


def test_a_report_has_a_line_for_each_load_with_a_draft() -> None:
    counts = DraftCounts(steps=10, proposed=40, accepted=10)
    result = measure(Level(concurrency=1), [outcome(0.0, 0.1, 1.0, 9)], None)
    levels = [result.model_copy(update={"draft": counts})]
    text = markdown(report().model_copy(update={"levels": levels}))
    assert "- draft, 1 at once: 2.00 tokens per step, 25% of the proposed right" in text
    assert "draft" not in markdown(report())
