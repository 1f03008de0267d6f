"""The bench's statistics against NumPy, and its results, reports and options."""

from __future__ import annotations

import itertools
import random
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from nemotron_bench.aiperf import read_outcomes as read_aiperf
from nemotron_bench.load import Level, Outcome
from nemotron_bench.perf_analyzer import read_outcomes as read_perf_analyzer
from nemotron_bench.report import compare, markdown, prepare_folder, read_report, write_reports
from nemotron_bench.results import Report, measure
from nemotron_bench.run import run
from nemotron_bench.settings import BenchSettings
from nemotron_bench.statistics import Lengths, arrivals, parse_slo, percentile, summarize
from nemotron_bench.targets import Event, RequestFailed, open_target
from nemotron_core.errors import NemotronError

NUMBERS = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50)


@given(NUMBERS, st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], fraction: float) -> None:
    expected = float(np.percentile(values, fraction * 100))
    assert percentile(values, fraction) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(NUMBERS)
def test_summaries_are_numpys(values: list[float]) -> None:
    summary = summarize(values)
    assert summary is not None
    assert summary.mean == pytest.approx(float(np.mean(values)), rel=1e-9, abs=1e-3)
    assert (summary.min, summary.max) == (min(values), max(values))
    assert summary.p50 == pytest.approx(float(np.median(values)), rel=1e-9, abs=1e-6)


def test_nothing_has_no_summary() -> None:
    assert summarize([]) is None


def test_arrivals_are_a_seeded_poisson_process() -> None:
    times = list(itertools.islice(arrivals(20.0, seed=3), 20_000))
    assert times == list(itertools.islice(arrivals(20.0, seed=3), 20_000))
    assert times != list(itertools.islice(arrivals(20.0, seed=4), 20_000))
    gaps = np.diff([0.0, *times])
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.03)  # exponential: both are alike


def test_lengths() -> None:
    assert str(Lengths.parse("128", "--input-tokens")) == "128"
    drawn = {Lengths.parse("3-5", "x").draw(random.Random(n)) for n in range(50)}
    assert drawn == {3, 4, 5}
    for wrong in ("", "0", "5-3", "1-2-3", "-4", "a", "1.5"):
        with pytest.raises(NemotronError):
            Lengths.parse(wrong, "--input-tokens")


def test_slo() -> None:
    assert parse_slo("ttft=0.5,itl=0.05") == {"ttft": 0.5, "itl": 0.05}
    for wrong in ("", "ttft", "ttft=", "tps=1", "ttft=0", "ttft=nan", "ttft=inf"):
        with pytest.raises(NemotronError, match="is no limit"):
            parse_slo(wrong)


def outcome(start: float, first: float | None, end: float, tokens: int, error: str = "") -> Outcome:
    return Outcome(
        start=start,
        first=first,
        end=end,
        input_tokens=10,
        output_tokens=tokens,
        error=error or None,
    )


OUTCOMES = [
    outcome(0.0, 0.2, 1.2, 11),  # ttft 0.2, itl 0.1
    outcome(0.0, 0.4, 2.4, 11),  # ttft 0.4, itl 0.2
    outcome(1.0, 1.1, 1.1, 1),  # one token: no time between tokens
    outcome(1.0, None, 4.0, 0, "overloaded"),
]


def test_measure() -> None:
    result = measure(Level(concurrency=2), OUTCOMES, {"ttft": 0.3, "itl": 0.15})
    assert (result.requests, result.errors, result.seconds) == (3, {"overloaded": 1}, 4.0)
    assert result.output_tokens_per_second == 23 / 4
    assert result.total_tokens_per_second == 53 / 4
    assert result.requests_per_second == 3 / 4
    assert result.goodput == 2 / 4  # the second is too slow
    ttft, itl, e2e = (result.latencies[name] for name in ("ttft", "itl", "e2e"))
    assert ttft and itl and e2e
    assert ttft.p50 == pytest.approx(0.2)
    assert itl.mean == pytest.approx(0.15)
    assert e2e.max == pytest.approx(2.4)


def report(factor: float = 1.0) -> Report:
    slower = [
        outcome(o.start * factor, o.first and o.first * factor, o.end * factor, 11)
        for o in OUTCOMES
    ]
    levels = [measure(Level(concurrency=n), slower, None) for n in (1, 8)]
    return Report(
        generator="builtin",
        target="grpc://<b>:8001 ensemble",
        started="2026-01-01",
        machine={"cores": 2},
        versions={"numpy": "1"},
        settings={"seed": 1},
        levels=levels,
    )


def test_reports_are_written_read_and_compared(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "out")
    written = write_reports(report(), tmp_path / "out")
    assert [path.name for path in written] == ["bench.json", "bench.md", "bench.html"]
    assert read_report(written[0]) == report()
    text = compare(report(), report(2.0))
    assert "| requests/s | 1 | 0.5 | 0.500 |" in text
    assert "2.000" in text
    assert "8 at once" in markdown(report())
    with pytest.raises(NemotronError, match="no report"):
        read_report(written[1])
    with pytest.raises(NemotronError, match="cannot read"):
        read_report(tmp_path / "none.json")
    other = report().model_copy(update={"levels": report().levels[:0]})
    with pytest.raises(NemotronError, match="no load in common"):
        compare(report(), other)


def test_wrong_options_are_named() -> None:
    for wrong, name in (
        ({"concurrency": "0"}, "--concurrency"),
        ({"concurrency": "1.5"}, "--concurrency"),
        ({"rate": "x"}, "--rate"),
        ({"rate": "1", "concurrency": "1"}, "not both"),
        ({"concurrency": "8", "requests": 7}, "7 requests cannot be 8 at once"),
        ({"sweep": True, "concurrency": "8"}, "--sweep chooses"),
    ):
        with pytest.raises(NemotronError, match=name):
            BenchSettings(**wrong)
    with pytest.raises(NemotronError, match="--generator"):
        run(BenchSettings(generator="ab"))
    levels = BenchSettings(rate="0.5,2").levels
    assert [str(level) for level in levels] == ["0.5 per second", "2 per second"]
    usual = BenchSettings(concurrency="1,100")
    assert [usual.requests_of(level) for level in usual.levels] == [64, 400]
    for url in ("ftp://a:1", "a", "http://", "grpc://a:port"):
        with pytest.raises(NemotronError, match="is no server"):
            open_target(url, None)


def test_events_of_an_openai_api() -> None:
    read = open_target("http://127.0.0.1:1", "tiny").read
    last = b'{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'
    assert read(last).output_tokens == 4
    assert read(b'{"choices": [{"text": "a"}]}').has_text
    for wrong in (b"{", b"[]", b"{}", b'{"error": {"message": "no"}}', b'{"choices": 1}'):
        with pytest.raises(RequestFailed):
            read(wrong)


def test_events_of_triton() -> None:
    with closing(open_target("grpc://127.0.0.1:1", None)) as target:
        response = service_pb2.ModelStreamInferResponse()
        for name, content in (("num_output_tokens", b"\4\0\0\0"), ("text_output", b"\1\0\0\0a")):
            response.infer_response.outputs.add(name=name)
            response.infer_response.raw_output_contents.append(content)
        assert target.read(response.SerializeToString()) == Event(True, 0, 4)
        failed = service_pb2.ModelStreamInferResponse(error_message="no").SerializeToString()
        for wrong, reason in ((b"\xff", "no response of a Triton server"), (failed, "no")):
            with pytest.raises(RequestFailed, match=reason):
                target.read(wrong)


def test_exports_of_other_generators() -> None:
    export = {
        "experiments": [
            {"requests": [{"timestamp": 1e9, "response_timestamps": [1.5e9, 2e9, 2.5e9]}]}
        ]
    }
    (outcome,) = read_perf_analyzer(export, 9, 3)
    assert outcome.latencies == {"ttft": 0.5, "itl": 0.5, "e2e": 1.5}
    metrics = {"time_to_first_token": 500, "request_latency": 1500}
    counts = {"usage_prompt_tokens": 9, "usage_completion_tokens": 3}
    times = {"request_start_ns": 1e9, "request_end_ns": 2.5e9}
    good = {"metadata": times, "metrics": {k: {"value": v} for k, v in (metrics | counts).items()}}
    bad = {"metadata": times, "error": {"message": "refused"}}
    answered, failed = read_aiperf([good, bad])
    assert answered == outcome
    assert (failed.error, failed.end) == ("refused", 2.5)
