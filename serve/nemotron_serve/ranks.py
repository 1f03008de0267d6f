"""The processes of an engine on several machines, under `mpirun`, `srun` or the like.

Only the engine's processes are under a launcher. `nemotron serve` may be one of several processes
itself: then the first one serves, and the others become the engine's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nemotron_build.lanes.deployment import Deployment
from nemotron_core.errors import NemotronError
from nemotron_core.launcher import MASTER_VARIABLE
from nemotron_serve.hosts import MPIRUN, mpirun_command
from nemotron_serve.triton import DRAIN, STOP_SIGNALS, die_with_parent

SRUN = "srun"
SLURM_VARIABLE = "SLURM_JOB_ID"


@dataclass(frozen=True, kw_only=True)
class EngineLaunch:
    """How this process starts the engine's."""

    prefix: Sequence[str] = ()
    """What stands before the command of the engine's process."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables besides those of this process."""
    is_rank: bool = False
    """Whether a launcher has started this process as one of the engine's."""
    is_alone: bool = False
    """Whether the prefix starts one process here, which must know of no other launcher."""

    @property
    def ends_others(self) -> bool:
        """Whether the command begins with a launcher of processes on other machines."""
        return bool(self.prefix) and not (self.is_rank or self.is_alone)

    @property
    def keeps_rank(self) -> bool:
        """Whether the engine's process gets the launcher's variables."""
        return self.is_rank or self.ends_others


def engine_launch(
    deployment: Deployment, place: tuple[int, int] | None, hosts: Sequence[str] = ()
) -> EngineLaunch:
    """Return how the engine's process begins.

    On one machine it starts what it needs itself. `place` is the rank and the number of ranks of
    this process, if a launcher started several: if there are as many as the engine has processes,
    they become these. A process on its own starts those of several machines: on `hosts`, or else on
    the machines of a Slurm allocation.

    Raises `NemotronError` if the number of processes does not fit an engine of several machines.
    """
    launch, nodes = deployment.launch, deployment.nodes
    mpirun = _alone_prefix(deployment)
    alone = EngineLaunch(prefix=mpirun, is_alone=bool(mpirun))
    if launch.mark is not None and launch.mark in os.environ:
        return EngineLaunch()
    if place is not None:
        _rank, size = place
        if size == deployment.processes and (nodes > 1 or launch.prefix):
            return EngineLaunch(prefix=launch.prefix, is_rank=True)
        if nodes > 1:
            raise NemotronError(
                f"the launcher has started {size} processes, the engine has {deployment.processes}",
                remedy=f"start {launch.per_node} on each of {nodes} machines",
            )
        return alone
    if nodes == 1:
        return alone
    if hosts:
        environment = {MASTER_VARIABLE: hosts[0]} if launch.needs_address else {}
        prefix = [*mpirun_command(hosts, deployment, os.environ | environment), *launch.prefix]
        return EngineLaunch(prefix=prefix, environment=environment)
    options = [f"--nodes={nodes}", f"--ntasks-per-node={launch.per_node}"]
    return EngineLaunch(
        prefix=[SRUN, *options, "--mpi=pmix", "--kill-on-bad-exit=1", *launch.prefix],
    )


def _alone_prefix(deployment: Deployment) -> Sequence[str]:
    """Return what stands before the engine's command on one machine.

    In a job of Slurm, MPI takes a process that nobody started for one of Slurm's and fails to start
    others beside it. An mpirun in front, which does not see Slurm, prevents that.
    """
    mpirun = shutil.which(MPIRUN)
    if not deployment.launch.uses_mpi or mpirun is None or SLURM_VARIABLE not in os.environ:
        return ()
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [mpirun, *root, "-n", "1", "--oversubscribe"]


def check_launch(deployment: Deployment, launch: EngineLaunch) -> None:
    """Raise `NemotronError` if a program that starts the processes is not on PATH."""
    programs = set(launch.prefix[:1])
    if launch.prefix and not launch.is_alone:
        programs.update(deployment.launch.prefix[:1])
    for program in sorted(programs):
        if shutil.which(program) is None:
            raise NemotronError(f"no {program} on PATH", remedy="use the lane's container")


def become_worker(deployment: Deployment, launch: EngineLaunch, command: Sequence[str]) -> None:
    """Let this process be one of the engine's that works for the first one, and ends with it.

    `command` is that of the engine's process. Signals that ask to stop are for the first one, which
    drains. Raises `NemotronError` if the process fails.
    """
    check_launch(deployment, launch)
    signal.signal(DRAIN, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if worker := deployment.launch.worker:  # MPI needs this very process
        os.execvp(worker[0], worker)  # noqa: S606  # no shell is the point
    # A launcher signals the group of a process, and the library handles signals in its own way.
    done = subprocess.run(command, start_new_session=True, preexec_fn=die_with_parent, check=False)
    if done.returncode:
        raise NemotronError(f"the engine's process here ended with status {done.returncode}")
