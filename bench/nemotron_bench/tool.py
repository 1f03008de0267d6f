"""The parts that adapters of other load generators have in common."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from nemotron_bench.load import Prompts, count_tokens
from nemotron_bench.settings import BenchSettings
from nemotron_bench.targets import Target
from nemotron_core.errors import NemotronError

MESSAGE_LENGTH = 500
"""Number of characters of a tool's output that an error message quotes."""
NANOSECONDS = 1e9
"""Nanoseconds per second; both tools export times in nanoseconds."""


def warm_up(settings: BenchSettings, target: Target, prompts: Prompts) -> None:
    """Send the warm-up requests, one after the other."""
    for _ in range(settings.warmup):
        count_tokens(target, prompts.next(), settings.outputs.low)


def run_tool(
    name: str, command: Sequence[str], target: Target, environment: Mapping[str, str] | None = None
) -> str:
    """Run a tool and return the end of its output.

    Raises `NemotronError`, which quotes the output, if the tool exits with an error.
    """
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    output = " ".join((process.stdout + process.stderr).split())[-MESSAGE_LENGTH:]
    if process.returncode:
        raise NemotronError(f"{name} failed: {output}", where=target.name)
    return output
