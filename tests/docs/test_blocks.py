"""Every block of commands can be read by a shell, and has options that exist."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import typer.main

from nemotron_cli.main import VERBS, app
from tests.docs.blocks import LABELS, Block, blocks, nemotron_commands

SHELL_BLOCKS = [block for block in blocks() if block.language == "sh"]


def test_labels_are_known() -> None:
    assert len(SHELL_BLOCKS) > 40
    assert [str(block) for block in blocks() if block.label not in LABELS] == []


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_a_shell_reads_it(block: Block) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


@pytest.mark.parametrize("block", [b for b in SHELL_BLOCKS if "nemotron " in b.text], ids=str)
def test_its_commands_have_these_options(block: Block) -> None:
    group: Any = typer.main.get_command(app)
    options = {name for one in group.params for name in one.opts} | {"-h", "--help"}
    for is_first, (verb, *arguments) in nemotron_commands(block):
        if verb not in VERBS:  # `nemotron --version`, or `helm install nemotron helm/nemotron`
            assert not is_first or verb in options
            continue
        command = group.get_command(None, verb)
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        used = {word.partition("=")[0] for word in arguments if word.startswith("-")}
        assert used <= known
