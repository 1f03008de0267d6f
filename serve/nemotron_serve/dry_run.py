"""The dry run of `nemotron serve`: every command and every file, as text."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemotron_build.engine_folder import EngineRecord
from nemotron_build.lanes import lane_of
from nemotron_build.profile import Profile
from nemotron_serve.ranks import launch_command, worker_command
from nemotron_serve.repository import render_repository
from nemotron_serve.server import Endpoints, leader_options
from nemotron_serve.triton import Triton, installed_triton

SCRATCH = Path("/SCRATCH")
"""Stands for the folder that each process creates for itself."""


def describe_serve(
    engine: Path,
    record: EngineRecord,
    profile: Profile,
    arguments: Sequence[str],
    hosts: Sequence[str] = (),
) -> str:
    """Return the commands that `nemotron serve` would run and the files that it would write.

    `arguments` are those with which each rank on `hosts` would run `nemotron serve`.
    """
    return "\n".join(_lines(engine, record, profile, arguments, hosts))


def _lines(
    engine: Path,
    record: EngineRecord,
    profile: Profile,
    arguments: Sequence[str],
    hosts: Sequence[str],
) -> Iterator[str]:
    deployment = lane_of(profile).deployment(profile)
    ranks = deployment.ranks
    if deployment.triton is None:
        triton = Triton(SCRATCH / "tritonserver", SCRATCH / "backends")
    else:
        triton = installed_triton(deployment.triton)
    if ranks > 1:
        yield f"# {ranks} ranks, one on each GPU"
        yield shlex.join(launch_command(deployment, arguments, hosts))
    models = SCRATCH / "models"
    endpoints = Endpoints(profile.address, **profile.ports.model_dump())
    leader = triton.command(models, "PREFIX") + leader_options(endpoints)
    yield "# rank 0, which clients talk to" if ranks > 1 else "# Triton"
    yield shlex.join(leader)
    if ranks > 1:
        yield f"# ranks 1 to {ranks - 1}"
        yield shlex.join(worker_command(triton, models, "PREFIX"))
    with tempfile.TemporaryDirectory() as folder:
        rendered = Path(folder, "models")
        render_repository(engine, record, profile, rendered, drain_file=SCRATCH / "draining")
        for path in sorted(rendered.rglob("*")):
            if path.is_file():
                yield f"# {models / path.relative_to(rendered)}"
            if path.name == "config.pbtxt":
                yield path.read_text(encoding="utf-8")
