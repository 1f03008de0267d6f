"""`nemotron profiles`, and the options for an engine that exists."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from nemotron_build.profile import load_profile, shipped_profiles
from nemotron_cli.main import app


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["profiles", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_every_shipped_profile_is_listed() -> None:
    lines = run().splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(shipped_profiles())]] == (
        shipped_profiles()
    )
    rows = {row["profile"]: row for row in json.loads(run("--json"))}
    assert rows["h100-fp8-tp8"]["runs_on"] == "8 × H100 80 GB"
    assert rows["a100-bf16-tp8-pp2"]["runs_on"] == "2 nodes of 8 × A100 80 GB"
    assert rows["cpu"]["runs_on"] == "any CPU"
    assert all(row["about"].endswith(".") for row in rows.values())


def test_a_profile_is_shown_and_written(tmp_path: Path) -> None:
    assert run("cpu").startswith("# Any machine")
    assert json.loads(run("cpu", "--json"))["lane"] == "cpu"
    path = tmp_path / "my.yaml"
    assert f"--profile {path}" in run("cpu", "-o", str(path))
    assert load_profile(str(path)) == load_profile("cpu")
    again = CliRunner().invoke(app, ["profiles", "cpu", "-o", str(path)])
    assert "the file exists" in str(again.exception)
    run("h100-fp8-tp8", "-o", str(path), "--overwrite")
    assert load_profile(str(path)) == load_profile("h100-fp8-tp8")
