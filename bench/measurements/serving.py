"""A server for the benches: an engine of the CPU lane on free ports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemotron_build.engine_folder import open_engine
from nemotron_build.profile import Profile
from nemotron_serve.server import Endpoints, TritonServer


@contextmanager
def serving(engine: Path) -> Iterator[Endpoints]:
    """Its own profile, on free ports."""
    with TritonServer(engine, on_free_ports(open_engine(engine).profile)) as server:
        yield server.endpoints


def on_free_ports(profile: Profile) -> Profile:
    ports = profile.ports.model_copy(update=dict.fromkeys(profile.ports.model_dump(), 0))
    return profile.model_copy(update={"ports": ports})
