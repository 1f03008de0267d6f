"""Print what `serve` would do: every command and every file."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemotron_build.engine_folder import EngineRecord
from nemotron_build.profile import CpuProfile, Profile
from nemotron_serve.ranks import launch_command, worker_command, world_size
from nemotron_serve.repository import render_repository
from nemotron_serve.server import Endpoints, leader_options
from nemotron_serve.triton import Triton, container_triton

SCRATCH = Path("/SCRATCH")
"""Stands for the folder that each process makes for itself."""


def describe_serve(
    engine: Path,
    record: EngineRecord,
    profile: Profile,
    arguments: Sequence[str],
    hosts: Sequence[str] = (),
) -> str:
    """`arguments` are those of `nemotron serve`, for the ranks on `hosts`."""
    return "\n".join(_serve(engine, record, profile, arguments, hosts))


def _serve(
    engine: Path,
    record: EngineRecord,
    profile: Profile,
    arguments: Sequence[str],
    hosts: Sequence[str],
) -> Iterator[str]:
    ranks = world_size(profile)
    if isinstance(profile, CpuProfile):
        triton = Triton(SCRATCH / "tritonserver", SCRATCH / "backends")
    else:
        triton = container_triton(profile)
    if ranks > 1:
        yield f"# {ranks} ranks, one on each GPU"
        yield shlex.join(launch_command(profile, arguments, hosts))
    models = SCRATCH / "models"
    ends = Endpoints(profile.address, **profile.ports.model_dump())
    leader = triton.command(models, "PREFIX") + leader_options(ends)
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
