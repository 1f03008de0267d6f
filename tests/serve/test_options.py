"""The options of `nemotron serve`."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from nemotron_core.command_options import takes
from nemotron_serve.options import ServeOptions

ENGINE = ["/engine"]
PORTS = ["--http-port=1", "--grpc-port=2", "--metrics-port=3", "--health-port=0"]


def parse(arguments: list[str]) -> ServeOptions:
    parsed: list[ServeOptions] = []
    app = typer.Typer()
    app.command()(takes(ServeOptions)(parsed.append))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return parsed[0]


def test_a_command_keeps_its_own_options() -> None:
    options = parse([*ENGINE, "--no-gateway", "--hosts=a,b", "--", "program", "--http-port=7"])
    assert (options.command, options.http_port) == (["program", "--http-port=7"], None)
    assert options.host_names == ["a", "b"]


def test_ports_replace_those_of_the_profile() -> None:
    assert parse(ENGINE).ports == {}
    ports = {"http": 1, "grpc": 2, "metrics": 3, "health": 0}
    assert parse([*ENGINE, *PORTS]).ports == ports
    assert parse([*ENGINE, "--gateway-port=5"]).ports == {"gateway": 5}
    assert parse([*ENGINE, "--gateway-port=5", "--no-gateway"]).ports == {"gateway": None}
