"""`nemotron bench` against a real server, with its own load and with other tools'."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_bench.report import read_report
from nemotron_bench.results import LevelResult
from nemotron_serve.model_server import ModelServer
from tests.tools import python_tool

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
TOKENS = 12


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NEMOTRON, "bench", *options], capture_output=True, text=True, check=False, timeout=200
    )


def url(server: ModelServer) -> str:
    return f"grpc://{server.endpoints.address}:{server.endpoints.grpc}"


def check(level: LevelResult, requests: int, tokens: int = TOKENS) -> None:
    """Every request was answered at its full length, and times are in their order."""
    assert (level.requests, level.errors) == (requests, {})
    assert level.output_tokens == requests * tokens
    ttft, e2e = level.latencies["ttft"], level.latencies["e2e"]
    assert ttft and e2e
    assert 0 < ttft.p50 <= e2e.p50 <= e2e.p99 <= level.seconds
    assert level.requests_per_second == pytest.approx(requests / level.seconds)


def test_concurrency_and_rate(server: ModelServer, tmp_path: Path) -> None:
    common = ("--url", url(server), "--requests", "8", "--warmup", "1", "--input-tokens", "20-40")
    process = bench(
        *common,
        *("--concurrency", "1,4", "--output-tokens", str(TOKENS), "--slo", "ttft=100,itl=100"),
        *("-o", str(tmp_path / "a")),
    )
    assert process.returncode == 0, process.stderr
    assert "4 at once" in process.stdout
    assert "8/8" in process.stderr  # progress
    report = read_report(tmp_path / "a" / "bench.json")
    assert [level.concurrency for level in report.levels] == [1, 4]
    for level in report.levels:
        check(level, 8)
        assert 8 * 20 * 0.7 < level.input_tokens < 8 * 40 * 1.3
        assert level.goodput == level.requests_per_second
    process = bench(
        *common, *("--rate", "50", "--output-tokens", "6-12", "-o", str(tmp_path / "b"))
    )
    assert process.returncode == 0, process.stderr
    (level,) = read_report(tmp_path / "b" / "bench.json").levels
    assert (level.requests, level.rate) == (8, 50)
    assert 8 * 6 <= level.output_tokens <= 8 * 12
    reports = [str(tmp_path / name / "bench.json") for name in ("a", "a")]
    process = bench("--compare", *reports)
    assert "| requests/s |" in process.stdout
    assert "1.000" in process.stdout


def test_perf_analyzer_as_the_generator(server: ModelServer, tmp_path: Path) -> None:
    process = bench(
        *("--url", url(server), "--requests", "8", "--concurrency", "2", "--input-tokens", "20"),
        *("--output-tokens", str(TOKENS), "--warmup", "1", "-o", str(tmp_path)),
        *("--generator", str(python_tool("perf_analyzer", "perf_analyzer"))),
    )
    assert process.returncode == 0, process.stderr
    report = read_report(tmp_path / "bench.json")
    assert report.generator == "perf_analyzer"
    check(report.levels[0], 8)


def test_unreachable_and_refusing_servers(server: ModelServer) -> None:
    process = bench("--url", "grpc://127.0.0.1:1", "--requests", "1")
    assert process.returncode == 1
    assert "UNAVAILABLE" in process.stderr
    process = bench("--url", url(server), "--requests", "3", "--output-tokens", "100000")
    assert process.returncode == 1  # each request was refused and is reported as an error
    assert '"3 × ' not in process.stdout
    assert "| 1 at once | 0 | 3 |" in process.stdout


def test_the_gateway_with_the_builtin_load_and_aiperf(server: ModelServer, tmp_path: Path) -> None:
    ports = tmp_path / "port.json"
    triton = f"{server.endpoints.address}:{server.endpoints.http}"
    command = [NEMOTRON, "gateway", "--triton", triton, "--port", "0", "--port-file", str(ports)]
    gateway = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        while not ports.exists():
            assert gateway.poll() is None
        for generator in ("builtin", str(python_tool("ecosystem", "aiperf"))):
            process = bench(
                *("--url", f"http://127.0.0.1:{json.loads(ports.read_text())['gateway']}"),
                *("--requests", "6", "--concurrency", "3", "--output-tokens", str(TOKENS)),
                *("--input-tokens", "30", "-o", str(tmp_path / "out"), "--generator", generator),
            )
            assert process.returncode == 0, process.stderr
            report = read_report(tmp_path / "out" / "bench.json")
            assert report.generator == Path(generator).name
            check(report.levels[0], 6)
    finally:
        gateway.kill()
        gateway.communicate()
