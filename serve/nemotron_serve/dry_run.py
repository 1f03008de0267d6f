"""The dry run of `nemotron serve`: every command and every file, as text."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nemotron_build.engine_folder import EngineRecord
from nemotron_build.lanes import lane_of
from nemotron_build.profile import Profile
from nemotron_core.launcher import own_rank
from nemotron_serve.engine_process import engine_command
from nemotron_serve.ports import Endpoints
from nemotron_serve.ranks import engine_launch
from nemotron_serve.repository import ServerFiles, render_repository
from nemotron_serve.server import leader_options
from nemotron_serve.triton import Triton, installed_triton

SCRATCH = Path("/SCRATCH")
"""Stands for the folder that each process creates for itself."""


def describe_serve(
    engine: Path,
    record: EngineRecord,
    profile: Profile,
    hosts: Sequence[str] = (),
    adapters: Mapping[str, Path] | None = None,
) -> str:
    """Return the commands that `nemotron serve` would run and the files that it would write.

    `hosts` are the machines of an engine on several nodes, `adapters` its LoRA adapters. Raises
    `NemotronError` if a launcher has started another number of processes than the engine has ranks.
    """
    return "\n".join(_lines(engine, record, profile, hosts, adapters or {}))


def _lines(
    engine: Path,
    record: EngineRecord,
    profile: Profile,
    hosts: Sequence[str],
    adapters: Mapping[str, Path],
) -> Iterator[str]:
    deployment = lane_of(profile).deployment(profile)
    if deployment.triton is None:
        triton = Triton(SCRATCH / "tritonserver", SCRATCH / "backends")
    else:
        triton = installed_triton(deployment.triton)
    launch = engine_launch(deployment, own_rank(), hosts)
    yield "# engine"
    yield from (f"{name}={text}" for name, text in launch.environment.items())
    command = engine_command(profile, engine, SCRATCH / "engine.sock", adapters)
    yield shlex.join([*launch.prefix, *command])
    models = SCRATCH / "models"
    endpoints = Endpoints(profile.address, **profile.ports.model_dump())
    yield "# Triton"
    yield shlex.join(triton.command(models, "PREFIX") + leader_options(endpoints))
    with tempfile.TemporaryDirectory() as folder:
        rendered = Path(folder, "models")
        files = ServerFiles(SCRATCH, SCRATCH / "engine.sock")
        render_repository(engine, record, profile, files, target=rendered)
        for path in sorted(rendered.rglob("*")):
            if path.is_file():
                yield f"# {models / path.relative_to(rendered)}"
            if path.name == "config.pbtxt":
                yield path.read_text(encoding="utf-8")
