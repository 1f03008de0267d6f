"""The command's front door: every verb loads, and only the code of its own room."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nemotron_cli.main import EXTRAS_OF_VERBS, VERBS, app
from nemotron_data.transport.protocol import API_KEYS
from tests.waiting import WAIT

LOADED_LIBRARIES = """
import sys, nemotron_cli.main as main
print(*sorted(main.EXTRAS.keys() & sys.modules.keys()))
"""
LOADED_ROOMS = """
import sys
from pathlib import Path
from nemotron_cli.main import app
app(sys.argv[1:], standalone_mode=False)
rooms = {name.partition(".")[0] for name in sys.modules}
print("rooms:", *sorted(name for name in rooms if name.startswith("nemotron_")))
"""

SHARED_OPTIONS = {"nemotron_evaluate": "nemotron_data"}
"""The room whose options a room's verbs take too."""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_no_library_of_an_extra_is_loaded_with_the_command() -> None:
    assert run(LOADED_LIBRARIES) == "\n"


def test_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    (expected,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    assert result.output == f"nemotron {expected}\n"
    assert result.exit_code == 0


def test_help_lists_every_verb_in_order() -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    first_words = [line.strip("│ ").partition(" ")[0] for line in result.output.splitlines()]
    assert [word for word in first_words if word in VERBS] == list(VERBS)


@pytest.mark.parametrize("verb", ["batch", "synthesize", "compare", "eval", "redteam"])
def test_help_names_the_variables_of_the_key(verb: str) -> None:
    text = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output
    assert [name for name in API_KEYS if name not in text] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_of_the_table_loads(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"{verb} [OPTIONS]" in result.output


@pytest.mark.parametrize("verb", {module: verb for verb, module in VERBS.items()}.values())
def test_a_verb_loads_only_its_own_room(verb: str) -> None:
    *_help, last_line = run(LOADED_ROOMS, verb, "--help").splitlines()
    room = VERBS[verb].partition(".")[0]
    rooms = {"nemotron_cli", "nemotron_core", room, SHARED_OPTIONS.get(room, room)}
    assert last_line.split() == ["rooms:", *sorted(rooms)]


def test_an_unknown_verb_is_wrong_usage() -> None:
    result = CliRunner().invoke(app, ["unknown"])
    assert result.exit_code == 2
    assert "No such command" in result.output


def test_nemotron_alone_shows_the_way() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    named = re.findall(r"nemotron ([a-z]+)", result.output)
    assert set(named) <= set(VERBS)
    assert named[0] == "demo"
    assert {"convert", "build", "serve", "chat"} <= set(named)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_h_is_help_everywhere(verb: str) -> None:
    result = CliRunner().invoke(app, [*verb.split(), "-h"])
    assert result.exit_code == 0
    assert "--help" in result.output


def test_each_verb_names_the_extra_that_it_needs() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = set(re.findall(r"^([a-z]+) = \[$", project, re.MULTILINE))
    assert set(EXTRAS_OF_VERBS.values()) <= extras
    assert set(VERBS) - set(EXTRAS_OF_VERBS) == {"profiles"}
    help_text = CliRunner().invoke(app, ["serve", "-h"]).output
    assert "pip install 'nemotron-triton[cpu]'" in " ".join(help_text.split())


BARE_INSTALLATION = """
import sys
from importlib.abc import MetaPathFinder

MISSING = set(sys.argv[1].split(","))

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv[:] = ["nemotron", *sys.argv[2:]]
from nemotron_cli.main import main
main()
"""
LIBRARIES = (
    *("aiohttp", "google", "grpc", "httptools", "jinja2", "ml_dtypes", "msgspec", "numcodecs"),
    *("openvino", "prometheus_client", "prompt_toolkit", "psutil", "safetensors", "sentencepiece"),
    *("starlette", "tokenizers", "torch", "tritonclient", "uvicorn", "uvloop", "matplotlib"),
)
"""Modules that only the extras install."""


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("inspect NEMO", "convert"),
        ("convert NEMO -o out", "convert"),
        ("plan --profile cpu", "convert"),
        ("gateway", "gateway"),
        ("chat Hello", "client"),
        ("bench", "bench"),
        ("doctor --profile cpu", "server"),
    ],
)
def test_a_bare_installation_names_the_extra(arguments: str, extra: str, tmp_path: Path) -> None:
    nemo = str(Path(__file__).parent / "tiny_nemotron" / "tiny_nemotron.nemo")
    words = [nemo if word == "NEMO" else word for word in arguments.split()]
    assert_named(words, LIBRARIES, extra, tmp_path)


def test_what_draws_the_report_is_missed_before_the_load(tmp_path: Path) -> None:
    """Nothing listens at this address, which nobody is told because it is not asked."""
    words = ["bench", "--url", "grpc://127.0.0.1:9", "-o", "report"]
    assert_named(words, ("matplotlib",), "bench", tmp_path)


def assert_named(words: Sequence[str], missing: Sequence[str], extra: str, folder: Path) -> None:
    """Run a command without some modules: it must end with the extra that has them."""
    done = subprocess.run(
        [sys.executable, "-c", BARE_INSTALLATION, ",".join(missing), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=WAIT,
    )
    assert done.returncode == 1
    assert re.fullmatch(
        rf"nemotron: \S+ is not installed: pip install 'nemotron-triton\[{extra}\]'\n", done.stderr
    ), done.stderr
