"""Honest reports: intervals, the knee of a sweep, unlike runs, plots in one file."""

from __future__ import annotations

import base64
import random
import re
import statistics
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from nemotron_bench.html_report import html
from nemotron_bench.load import Level
from nemotron_bench.report import compare, differences, markdown
from nemotron_bench.results import LevelResult, measure
from nemotron_bench.statistics import median_interval, throughput_interval
from nemotron_bench.sweep import knee, knee_text, sweep
from tests.bench.test_statistics import outcome, report


def test_a_medians_interval_has_the_median_in_19_of_20_samples() -> None:
    rng = random.Random(5)
    hits = 0
    for _ in range(2000):
        interval = median_interval([rng.expovariate(1) for _ in range(30)])
        assert interval is not None
        hits += interval[0] <= 0.6931 <= interval[1]
    assert 0.94 < hits / 2000 < 0.985
    assert median_interval([1.0] * 5) is None


@pytest.mark.slow
def test_a_throughputs_interval_has_the_mean_of_a_steady_load() -> None:
    rng = random.Random(5)
    hits = 0
    for _ in range(500):
        starts = [rng.uniform(0, 100) for _ in range(400)]
        interval = throughput_interval(
            [(0.0, 0.001, 0), (100.0, 100.001, 0)] + [(start, start + 0.01, 10) for start in starts]
        )
        assert interval is not None
        hits += interval[0] <= 40 <= interval[1]
    assert 0.90 < hits / 500 <= 1
    assert throughput_interval([(0.0, 1.0, 5)] * 9) is None


def level(concurrency: int, speed: float, errors: int = 0) -> LevelResult:
    outcomes = [outcome(0.0, 0.1, 1.0, round(speed)) for _ in range(concurrency)]
    outcomes += [outcome(0.0, None, 1.0, 0, "no")] * errors
    return measure(Level(concurrency=concurrency), outcomes, None)


def saturating(load: Level) -> LevelResult:
    """Return what a server with room for 16 requests gives."""
    assert load.concurrency is not None
    return level(load.concurrency, 100 * min(load.concurrency, 16) / load.concurrency)


def test_a_sweep_ends_when_the_throughput_no_longer_grows() -> None:
    levels = sweep(saturating)
    assert [one.concurrency for one in levels] == [1, 2, 4, 8, 16, 32, 64]
    assert knee(levels) == 16


def test_a_sweep_ends_at_failures_and_its_knee_is_below() -> None:
    levels = sweep(lambda load: level(load.concurrency or 0, 10, errors=load.concurrency == 4))
    assert [one.concurrency for one in levels] == [1, 2, 4]
    assert knee(levels) == 2
    assert knee(levels[2:]) is None


def test_the_knees_fraction_is_of_loads_without_failures() -> None:
    levels = [level(1, 95), level(2, 50), level(4, 50, errors=1)]
    assert levels[2].output_tokens_per_second > levels[1].output_tokens_per_second
    assert knee(levels) == 1
    assert "1 at once give 95% of the highest throughput" in knee_text(1, levels)


def test_answers_without_tokens_have_no_knee() -> None:
    levels = sweep(lambda load: level(load.concurrency or 0, 0))
    assert knee(levels) is None
    text = markdown(report().model_copy(update={"levels": levels, "knee": knee(levels)}))
    assert "Knee" not in text


def test_the_number_of_requests_in_flight_is_measured() -> None:
    outcomes = [outcome(0.0, 0.5, 2.0, 9), outcome(0.0, 0.5, 1.0, 9)]
    assert measure(Level(concurrency=2), outcomes, None).in_flight == pytest.approx(1.5)


def test_unlike_runs_are_named() -> None:
    other = report().model_copy(update={"settings": {"seed": 2}, "machine": {"cores": 4}})
    assert differences(report(), other) == [
        "seed is 1 in A and 2 in B",
        "cores is 2 in A and 4 in B",
    ]
    assert "warning: seed is 1 in A and 2 in B" in compare(report(), other)
    assert "warning" not in compare(report(), report(2.0))


def test_memory_is_for_a_person() -> None:
    one = report().model_copy(update={"machine": {"memory": 24 << 30}})
    assert "- memory: 24.0 GiB" in markdown(one)
    assert one.machine["memory"] == 24 << 30


def test_markdown_has_intervals_and_the_knee() -> None:
    outcomes = [outcome(0.1 * n, 0.1 * n + 0.2, 0.1 * n + 1.2, 11) for n in range(12)]
    many = measure(Level(concurrency=2), outcomes, None)
    text = markdown(report().model_copy(update={"levels": [many], "knee": 2}))
    assert re.search(r"\| 200\.0 \[200\.0, 200\.0\] / 200\.0 / 200\.0 \|", text)
    assert "Knee: 2 at once give 100% of the highest throughput" in text
    assert statistics.median(o.end - o.start for o in outcomes) == pytest.approx(1.2)


class _Page(HTMLParser):
    """Collects a page's elements and the addresses that it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(v) for k, v in attributes if k in ("src", "href", "xlink:href")]


@pytest.mark.slow
def test_the_page_loads_nothing_and_escapes_texts() -> None:
    page = _Page()
    text = html(report())
    page.feed(text)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert "<b>" not in text
    prefix = "data:image/svg+xml;base64,"
    assert len(page.addresses) == 5
    assert all(address.startswith(prefix) for address in page.addresses)
    for address in page.addresses:
        image = ET.fromstring(base64.b64decode(address.removeprefix(prefix)))
        assert image.tag == "{http://www.w3.org/2000/svg}svg"
    assert html(report()) == text  # the same numbers give the same file
