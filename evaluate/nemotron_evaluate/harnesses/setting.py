"""What a harness is given besides the benchmark: the server, and where data and results lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemotron_evaluate.harnesses.environment import Environment
from nemotron_evaluate.suite.benchmark import Benchmark
from nemotron_evaluate.suite.items import Item


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A model behind OpenAI's API that judges answers."""

    url: str
    """The server's URL, without `/v1`."""
    model: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The server and the folders of one benchmark's run."""

    name: str
    """The benchmark's name in the suite."""
    url: str
    """The server's URL, without `/v1`."""
    model: str
    context: int
    """Number of tokens of a prompt and its answer together."""
    folder: Path
    """Where the harness keeps its settings, its log and its answers."""
    environment: Environment | None
    """`None` for a harness that needs none."""
    data: Path | None = None
    """Folder with the benchmarks' data; `None` leaves them to the harness, which asks the hub."""
    tokenizer: Path | None = None
    """Folder of a Hugging Face tokenizer; `None` asks the server for tokens."""
    concurrency: int = 16
    batch: int = 1
    """Number of prompts in one request, where answers are compared."""
    timeout: int = 3600
    """Seconds for one request."""
    judge: Judge | None = None
    """`None` leaves answers unjudged."""

    @property
    def installed(self) -> Environment:
        """The environment of a harness that needs one."""
        if self.environment is None:
            raise AssertionError(f"{self.name} has no environment")
        return self.environment

    def packaged(self, file: str) -> Path:
        """Return the path of a file, `PACKAGE/PATH`, of a package of the harness's environment."""
        package, _, path = file.partition("/")
        return self.installed.package(package) / path


@dataclass(frozen=True)
class Harness:
    """How benchmarks of one harness are run."""

    environment: str | None
    """Name of the environment that it needs, if it needs one."""
    check: Callable[[Benchmark, Setting], None]
    """Raise `NemotronError` if the benchmark cannot run as the setting is."""
    run: Callable[[Benchmark, Setting], list[Item]]
    """Run the benchmark, or what is left of it after an interruption, and return its items."""
    needs_data: bool = False
    """Whether the questions come from `--data` only."""
    judges: bool = False
    """Whether it scores the answers if there is a judge, and has no items without one."""
