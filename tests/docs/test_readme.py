"""The README's commands, and the pages' `demo` blocks, work as written beside the demo."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.docs.blocks import ROOT, blocks, pages_with
from tests.docs.demo_server import DemoServer
from tests.tiny_nemotron.answers import ExactAnswer

TWO_COMMANDS = next(block for block in blocks() if block.page == "README.md").text.splitlines()
QUESTION = "Why is the sky blue?"
WAYS = 4
"""Number of ways in which the README asks this question and prints the answer."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    with DemoServer(tmp_path_factory.mktemp("demo"), TWO_COMMANDS[0]) as server:
        yield server


def test_the_two_commands(demo: DemoServer, answers: list[ExactAnswer]) -> None:
    assert len(TWO_COMMANDS) == 2
    assert TWO_COMMANDS[1] in (ROOT / ".ci" / "run").read_text().splitlines()
    known = [one.question.answer for one in answers]
    assert sum(answer in demo.output().splitlines() for answer in known) >= 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The pages' `demo` blocks, and with --docs the `slow` ones."""
    if "label" in metafunc.fixturenames:
        labels = ("demo", "slow") if metafunc.config.option.docs else ("demo",)
        cases = [(page, label) for label in labels for page in pages_with(label)]
        metafunc.parametrize(("page", "label"), cases)


def test_a_pages_blocks(
    demo: DemoServer, page: str, label: str, answers: list[ExactAnswer]
) -> None:
    done = demo.run(page, label)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"error"' not in done.stdout
    if (page, label) == (
        "README.md",
        "demo",
    ):  # by chat, curl, Python and from the reader's own server
        (answer,) = (
            one.question.answer
            for one in answers
            if [message.content for message in one.question.messages] == [QUESTION]
        )
        assert done.stdout.count(answer) == WAYS


def test_ctrl_c_drains_and_stops(demo: DemoServer) -> None:
    demo.interrupt()
    said = [line for line in demo.output().splitlines() if not line.startswith("make:")]
    assert said[-1] == "stopped"


def test_the_badges_are_true_and_versions_agree() -> None:
    text = (ROOT / "README.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    assert f'alt="version {version}"' in text
    assert f"badge/version-{version}-" in text
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    chart = (ROOT / "helm" / "nemotron" / "Chart.yaml").read_text()
    assert re.findall(r'^appVersion: "?([^"\n]+)', chart, re.MULTILINE) == [version]
    makefile = (ROOT / "Makefile").read_text()
    versions = re.findall(r"\(3, (\d+)\)", makefile)
    assert f'alt="Python 3.{versions[0]} to 3.{versions[-1]}"' in text
    assert (ROOT / "LICENSE").read_text().strip().startswith("Apache License")
