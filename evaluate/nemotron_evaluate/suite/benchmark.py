"""A benchmark: which harness runs it, with which settings, and what the model card says."""

from __future__ import annotations

import enum
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Strict(BaseModel):
    """Data of a file, with unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Endpoint(enum.Enum):
    """Where a harness sends its requests."""

    CHAT = "chat"
    """`POST /v1/chat/completions`: the answers are generated."""
    COMPLETIONS = "completions"
    """`POST /v1/completions` with texts: the answers are generated."""
    LOG_LIKELIHOOD = "log-likelihood"
    """`POST /v1/completions` with `echo` and `logprobs`: given answers are compared."""


class Kind(enum.Enum):
    """What the values of a score are, which decides on its interval."""

    RATE = "rate"
    """Right or wrong, 1 or 0: Wilson's interval where each item has one."""
    RATING = "rating"
    """A judge's rating; an item whose rating cannot be read has none."""
    F1 = "f1"
    """The F1 of a class, as a mean: two ones for each true positive, a zero for each false one."""


class Score(Strict):
    """One number of a benchmark."""

    metric: str
    """Name in the harness's results for each item."""
    filter: str | None = None
    """Which of the harness's readings of an answer is scored, if it has several."""
    title: str = ""
    """What is scored, for a benchmark with several scores."""
    card: float | None = None
    """The model card's value, in points."""
    kind: Kind = Kind.RATE
    scale: float = Field(100.0, gt=0)
    """Points of the harness's value 1: 100 for percent, 1 for a judge's scale."""


class Data(Strict):
    """How a file of `--data FOLDER` takes the place of a data set on the hub."""

    split: str = ""
    """Split that the harness's task scores."""
    tasks: str = ""
    """The harness's file of the task, relative to its tasks; `{}` is the value of `by`."""
    by: str | None = None
    """Column of the file that distributes its rows over several tasks."""
    columns: tuple[str, ...]
    """Columns that each row must have."""
    package: str | None = None
    """File of the rows in a package of the harness's environment, if one has them."""
    program: str | None = None
    """For benchmarks of code: the program that passes if the answer is right, with a row's columns
    and `answer` in braces."""

    @field_validator("tasks")
    @classmethod
    def _stays_inside(cls, tasks: str) -> str:
        path = PurePosixPath(tasks)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("a path inside the harness's tasks is needed")
        return tasks


class Benchmark(Strict):
    """One row of the model card, or a benchmark of the user's own."""

    title: str
    harness: str
    task: str
    """The harness's name of the task, or a file of lm-eval's with the ending `.yaml`, relative to
    the suite."""
    version: str | None = None
    """Version of the task that is expected. Results of another one are not compared."""
    endpoint: Endpoint = Endpoint.CHAT
    shots: int | None = Field(None, ge=0)
    """Number of examples before each question; `None` leaves it to the task."""
    limit: int | None = Field(None, ge=1)
    """Number of items taken from each task, the first ones; `None` takes all."""
    items: int | None = Field(None, ge=1)
    """Number of items of the whole benchmark."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest answer in tokens, for tasks that do not say it themselves."""
    scores: dict[str, Score] = Field(min_length=1)
    judge: str | None = None
    """Name of the model that judged the answers on the card."""
    data: Data | None = None
    needs: str = ""
    """What it takes besides a server: a judge, a sandbox, another harness."""
    left_open: str = ""
    """What the card does not say, and what was chosen."""

    @property
    def file(self) -> Path | None:
        """The user's own file of the task, or `None` if the harness knows the task by name."""
        return Path(self.task) if self.task.endswith(".yaml") else None
