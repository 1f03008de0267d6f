"""Ranks on several machines without a batch system: `mpirun`, which reaches them by ssh."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence

from nemotron_build.profile import Profile, TensorRTProfile
from nemotron_core.errors import NemotronError
from nemotron_serve.triton import JOB_VARIABLE

MPIRUN = "mpirun"
POLL_SECONDS = 1.0
HANDED_ON = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME", JOB_VARIABLE)
HANDED_ON_PREFIXES = ("NCCL_", "UCX_", "CUDA_", "NVIDIA_")
"""What an ssh session does not have, and the ranks need."""


def check_hosts(profile: Profile, hosts: Sequence[str]) -> None:
    """NemotronError unless there is one host for each of the profile's nodes."""
    nodes = profile.split.nodes if isinstance(profile, TensorRTProfile) else 1
    if len(hosts) != nodes:
        raise NemotronError(
            f"{len(hosts)} hosts, but the engine runs on {nodes} nodes",
            where="--hosts",
            remedy=f"name {nodes}" if nodes > 1 else "leave it out",
        )


def command_over(
    hosts: Sequence[str],
    profile: TensorRTProfile,
    nemotron: Sequence[str],
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """What starts a rank on each GPU of `hosts`, in their order.

    mpirun is called by its whole path, so that it looks for itself there on the other machines.
    """
    names = [name for name in sorted(environment) if name.startswith(HANDED_ON_PREFIXES)]
    names += [name for name in HANDED_ON if name in environment or name == JOB_VARIABLE]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    slots = ",".join(f"{host}:{profile.split.gpus_per_node}" for host in hosts)
    exports = [part for name in names for part in ("-x", name)]
    world = str(profile.split.world_size)
    return [
        shutil.which(MPIRUN) or MPIRUN,
        *root,
        *("-n", world, "--host", slots, "--map-by", "slot"),
        *exports,
        *nemotron,
    ]


def wait_until_known(hosts: Sequence[str], patience: float, stop: threading.Event) -> None:
    """A cluster gives a machine its name when it starts it.

    NemotronError after `patience` seconds; KeyboardInterrupt if `stop` is set before.
    """
    deadline = time.monotonic() + patience
    for host in hosts:
        while True:
            try:
                socket.getaddrinfo(host, None)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise NemotronError(f"no such host: {error}", where=host) from error
                if stop.wait(POLL_SECONDS):
                    raise KeyboardInterrupt from error
