"""Ranks on several machines without a batch system: `mpirun`, which reaches them by ssh."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence

from nemotron_build.lanes.deployment import Deployment
from nemotron_core.errors import NemotronError

MPIRUN = "mpirun"
POLL_SECONDS = 1.0
EXPORTED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME", "MASTER_ADDR", "MASTER_PORT")
EXPORTED_PREFIXES = ("NCCL_", "UCX_", "CUDA_", "NVIDIA_", "TRTLLM_", "TLLM_", "VLLM_")
"""Environment variables that the ranks need and that an ssh session does not set."""


def check_hosts(deployment: Deployment, hosts: Sequence[str]) -> None:
    """Raise `NemotronError` unless there is one host for each node."""
    nodes = deployment.nodes
    if len(hosts) != nodes:
        raise NemotronError(
            f"{len(hosts)} hosts, but the engine runs on {nodes} nodes",
            where="--hosts",
            remedy=f"name {nodes}" if nodes > 1 else "leave it out",
        )


def mpirun_command(
    hosts: Sequence[str], deployment: Deployment, environment: Mapping[str, str] = os.environ
) -> list[str]:
    """Return what stands before a command to run it for each process of the engine, on `hosts`.

    mpirun is called by its full path, so that it searches for itself there on the other machines.
    """
    names = [name for name in sorted(environment) if name.startswith(EXPORTED_PREFIXES)]
    names += [name for name in EXPORTED if name in environment]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    slots = ",".join(f"{host}:{deployment.launch.per_node}" for host in hosts)
    exports = [part for name in names for part in ("-x", name)]
    return [
        shutil.which(MPIRUN) or MPIRUN,
        *root,
        *("-n", str(deployment.processes), "--host", slots, "--map-by", "slot"),
        *exports,
    ]


def wait_until_known(hosts: Sequence[str], patience: float, stop: threading.Event) -> None:
    """Wait until the names of all hosts resolve: a cluster names a machine when it starts it.

    Raises `NemotronError` after `patience` seconds, and `KeyboardInterrupt` if `stop` is set.
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
