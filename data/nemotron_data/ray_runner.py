"""All shards of a batch or a recipe as tasks of a Ray cluster.

Each task runs the same job as the command with `--shard I/N`, with an output, a manifest and a lock
of its own. Ray decides where and when, and starts the task of a worker that died again, which goes
on where that one was. So input and output must be on a disk that all machines share.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from nemotron_core.errors import NemotronError
from nemotron_data.batch.interruption import Interrupted
from nemotron_data.batch.job import Job
from nemotron_data.batch.work import Counts
from nemotron_data.extra import require
from nemotron_data.options import DEFAULT_URL, BatchOptions, Runner, SynthesisOptions
from nemotron_data.rows.source import STREAM
from nemotron_data.synthesis.manifest import Manifest
from nemotron_data.synthesis.run import synthesize
from nemotron_data.transport.factory import server_urls

RETRIES = 20
"""Number of times that Ray starts a shard again whose worker died."""
FILE_RULE = "schema="
"""Beginning of a rule of `--accept` that names a file."""
Options = TypeVar("Options", BatchOptions, SynthesisOptions)


@dataclass(frozen=True)
class ShardResult:
    """What a task returns: an error as a text, because Ray would carry it without its remedy."""

    shard: str
    value: Any = None
    """What the job returned."""
    error: str | None = None


def batch_on_ray(options: BatchOptions) -> Counts:
    """Run all shards of a batch. Returns the counts of all; raises as `Job.run` does."""
    if STREAM in (options.source, options.output) or not _is_shared(options.source):
        raise NemotronError(
            "a stream has no shards", where="--runner ray", remedy="name files on a shared disk"
        )
    if options.metrics_port is not None:
        raise NemotronError("each shard would need a port", where="--metrics-port")
    accept = [
        FILE_RULE + _absolute(rule.removeprefix(FILE_RULE)) if rule.startswith(FILE_RULE) else rule
        for rule in options.accept or ()
    ]
    shared = replace(
        options,
        source=_absolute(options.source),
        output=_absolute(options.output),
        url=server_urls(options.url or [DEFAULT_URL]),
        accept=accept or None,
    )
    values: list[Counts] = _run(_batch_shard, _shards(shared))
    return Counts(sum(value.finished for value in values), sum(value.failed for value in values))


def synthesize_on_ray(options: SynthesisOptions) -> list[Manifest]:
    """Run a recipe for all shards of its first step's rows. Returns the manifest of each."""
    recipe = options.recipe
    shared = replace(
        options,
        recipe=_absolute(recipe) if Path(recipe).exists() else recipe,
        output=Path(_absolute(str(options.output))),
        rows=[_absolute_value(pair) for pair in options.rows or ()],
        url=[_with_urls(pair) for pair in options.url or ()],
    )
    manifests: list[Manifest] = _run(_recipe_shard, _shards(shared))
    return manifests


def _absolute_value(pair: str) -> str:
    name, equals, value = pair.partition("=")
    return f"{name}{equals}{_absolute(value)}" if value else pair


def _with_urls(pair: str) -> str:
    """Return NAME=URL, with an absolute path for the file of URLs that `@FILE` names."""
    name, _, value = pair.partition("=")
    return f"{name}=@{_absolute(value[1:])}" if value.startswith("@") else pair


def _is_shared(source: str) -> bool:
    """Return whether an input can be read by several processes: it is no stream."""
    path = Path(source)
    if not path.exists():
        return True  # a pattern
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _absolute(name: str) -> str:
    """Return a path that means the same in another working directory. A last slash stays."""
    return os.path.abspath(name) + "/" * name.endswith("/")  # noqa: PTH100  # it may be a pattern


def _shards(options: Options) -> list[Options]:
    """Return the options of each shard."""
    assert options.shards is not None  # as `check_runner` says
    count = options.shards
    return [
        replace(options, shard=f"{index}/{count}", shards=None, runner=Runner.LOCAL)
        for index in range(count)
    ]


def _batch_shard(options: BatchOptions) -> ShardResult:
    """Run a shard of a batch. Called in a worker of Ray."""
    shard = str(options.shard)
    title = f"shard {shard}"
    return _outcome(shard, lambda: Job(options, options.defaults, title=title).run())


def _recipe_shard(options: SynthesisOptions) -> ShardResult:
    """Run a shard of a recipe. Called in a worker of Ray."""
    return _outcome(str(options.shard), lambda: synthesize(options))


def _outcome(shard: str, run: Callable[[], Any]) -> ShardResult:
    try:
        return ShardResult(shard, run())
    except NemotronError as error:
        return ShardResult(shard, error=str(error))


def _run(task: Callable[[Any], ShardResult], shards: Sequence[Any]) -> list[Any]:
    """Run a task for each shard, and return what they return.

    A shard that fails does not hinder the others. Raises `NemotronError` with the first failure
    when all have ended, and `Interrupted` after Ctrl-C.
    """
    ray: Any = require("ray", "ray")
    results: list[ShardResult] = []
    with _cluster(ray):
        remote = ray.remote(max_retries=RETRIES)(task)
        waiting = {remote.remote(shard): str(shard.shard) for shard in shards}
        try:
            while waiting:
                (done, *_), _ = ray.wait(list(waiting))
                results.append(_result(ray, done, waiting.pop(done)))
                print(_line(results, len(shards)), file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # Ray ends the tasks of a command that has ended
            raise Interrupted(
                f"interrupted with {len(results)} of {len(shards)} shards done",
                remedy="run the same command again to go on",
            ) from None
    failed = [result for result in results if result.error is not None]
    if failed:
        raise NemotronError(
            f"{len(failed)} of {len(shards)} shards failed: {failed[0].error}",
            where=f"shard {failed[0].shard}",
            remedy="the same command goes on with them",
        )
    return [result.value for result in results]


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Connect to the cluster that `RAY_ADDRESS` names, or that runs here, or start one here."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(include_dashboard=None, logging_level="WARNING")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise NemotronError(f"no Ray cluster: {error}", where="RAY_ADDRESS") from error
    try:
        yield
    finally:
        ray.shutdown()


def _result(ray: Any, reference: object, shard: str) -> ShardResult:
    try:
        result: ShardResult = ray.get(reference)
    except ray.exceptions.RayError as error:
        return ShardResult(shard, error=f"its task ended: {type(error).__name__}: {error}")
    return result


def _line(results: Sequence[ShardResult], count: int) -> str:
    """Return the line about the last result."""
    last = results[-1]
    state = "done" if last.error is None else f"failed: {last.error}"
    return f"ray: shard {last.shard} {state}; {len(results)} of {count} have ended"
