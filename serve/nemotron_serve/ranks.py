"""The ranks of an engine: the library's processes on each GPU, under `mpirun`, `srun` or the like.

Only the engine's process has to do with MPI. The library's launcher runs it on the first rank, and
keeps the other ranks for it. The launcher starts its command in the background, splits it at
spaces, forwards no signal and loses the exit code, so `nemotron serve` itself is not under it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from nemotron_build.lanes.deployment import Deployment
from nemotron_core.errors import NemotronError
from nemotron_serve.hosts import mpirun_command
from nemotron_serve.triton import DRAIN

SRUN = "srun"
LAUNCHER = "trtllm-llmapi-launch"
UNDER_LAUNCHER = (LAUNCHER, sys.executable, "-m", "nemotron_engine.launched")
"""The launcher and what stands between it and its command. The command runs on this machine."""
LAUNCHED = "TLLM_SPAWN_PROXY_PROCESS"
"""Environment variable that the launcher sets."""


def engine_launcher(
    deployment: Deployment, place: tuple[int, int] | None, hosts: Sequence[str] = ()
) -> list[str]:
    """Return what stands before the command of the engine's process.

    It is empty if the engine's process starts the ranks itself, which it can on one machine.
    `place` is the rank and the number of ranks of this process, if a launcher started several: if
    there are as many as the engine has ranks, they are its ranks. A process on its own starts the
    ranks of several machines: on `hosts`, or else on the machines of a Slurm allocation.
    Under the library's launcher, which may stand before `nemotron serve`, it is empty too.

    Raises `NemotronError` if the number of processes does not fit an engine of several machines.
    """
    if LAUNCHED in os.environ:
        return []
    if place is not None:
        _rank, size = place
        if size == deployment.ranks:
            return [*UNDER_LAUNCHER]
        if deployment.nodes > 1:
            raise NemotronError(
                f"the launcher has started {size} processes, the engine has {deployment.ranks}"
                " ranks",
                remedy=f"start {deployment.ranks}, one on each GPU",
            )
        return []
    if deployment.nodes == 1:
        return []
    if hosts:
        return [*mpirun_command(hosts, deployment), *UNDER_LAUNCHER]
    nodes = [f"--nodes={deployment.nodes}", f"--ntasks-per-node={deployment.gpus_per_node}"]
    return [SRUN, *nodes, "--mpi=pmix", "--kill-on-bad-exit=1", *UNDER_LAUNCHER]


def check_launcher(launcher: Sequence[str]) -> None:
    """Raise `NemotronError` if a program that starts the ranks is not on PATH."""
    for program in {*launcher[:1], LAUNCHER} if launcher else ():
        if shutil.which(program) is None:
            raise NemotronError(f"no {program} on PATH", remedy="use the lane's container")


def become_worker() -> NoReturn:
    """Replace this process by a rank that waits for the first one, and ends with it.

    It ignores the signals that ask to stop: the first rank drains.
    """
    check_launcher([LAUNCHER])
    for number in (signal.SIGINT, signal.SIGTERM, DRAIN):
        signal.signal(number, signal.SIG_IGN)
    os.execvp(LAUNCHER, [LAUNCHER])  # noqa: S606  # no shell is the point
