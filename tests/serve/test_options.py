"""The options of `nemotron serve`: one declaration for the command line and for each rank's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from nemotron_core.command_options import takes
from nemotron_serve.options import ServeOptions

ENGINE = ["/engine"]
PORTS = ["--http-port=1", "--grpc-port=2", "--metrics-port=3", "--health-port=0"]
FILES = ["--port-file=/ports", "--log-file=/log", "--traces=http://collector/v1/traces"]


def parse(arguments: list[str]) -> ServeOptions:
    parsed: list[ServeOptions] = []
    app = typer.Typer()
    app.command()(takes(ServeOptions)(parsed.append))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return parsed[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ENGINE,
        [*ENGINE, *PORTS, "--gateway-port=5", *FILES, "--profile=own.yaml"],
        [*ENGINE, "--no-gateway", "--", "bash", "-c", "echo a b; exit 3"],
        [*ENGINE, "--", "program", "--http-port=7"],
    ],
)
def test_a_rank_gets_the_same_options(arguments: list[str]) -> None:
    options = parse(arguments)
    assert parse(options.arguments()) == options


def test_a_rank_neither_starts_ranks_nor_prints_a_dry_run() -> None:
    options = parse([*ENGINE, "--hosts=a,b", "--dry-run"])
    assert options.host_names == ["a", "b"]
    assert parse(options.arguments()) == replace(options, hosts=None, dry_run=False)


def test_ports_replace_those_of_the_profile() -> None:
    assert parse(ENGINE).ports == {}
    ports = {"http": 1, "grpc": 2, "metrics": 3, "health": 0}
    assert parse([*ENGINE, *PORTS]).ports == ports
    assert parse([*ENGINE, "--gateway-port=5"]).ports == {"gateway": 5}
    assert parse([*ENGINE, "--gateway-port=5", "--no-gateway"]).ports == {"gateway": None}
