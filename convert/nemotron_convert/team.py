"""The processes that share one conversion: those of one `mpirun`, or a single one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from nemotron_core.errors import NemotronError
from nemotron_core.launcher import own_rank

T = TypeVar("T")

PMIX_VARIABLE = "PMIX_RANK"
"""Rank of the process. Some launchers that speak PMIx set no other variable."""


@dataclass(frozen=True)
class Team:
    """The place of this process among `size` that work together; the leader has rank 0."""

    rank: int = 0
    size: int = 1
    world: Any = None
    """mpi4py's COMM_WORLD, or `None` if there is only one process."""

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        if self.world is not None:
            self.world.Barrier()

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes in the order of their ranks, on every process."""
        return [value] if self.world is None else self.world.allgather(value)

    def sum(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add up the arrays of all processes, in place, and return the sum on every process."""
        if self.world is not None:
            from mpi4py import MPI  # noqa: PLC0415 - loaded: `world` comes from it

            self.world.Allreduce(MPI.IN_PLACE, values)
        return values

    def broadcast(self, value: T | None) -> T:
        """Return the leader's value on every process; the other processes' values are ignored."""
        return cast(T, value if self.world is None else self.world.bcast(value))


ALONE = Team()
"""A team of one process."""


@contextmanager
def open_team() -> Iterator[Team]:
    """Join the processes that `mpirun` or `srun` started together, for the time of the context.

    If a process fails, it prints why and aborts all of them, because the others would wait for it
    forever. If MPI does not connect the processes (for example under `srun --mpi=pmi2` with an MPI
    that speaks only PMIx), the first one prints so and works alone, and the others exit here with
    status 0. Raises `NemotronError` if there are several processes and mpi4py cannot be loaded,
    because each would do the whole work.
    """
    rank_and_size = own_rank()
    if rank_and_size is None and PMIX_VARIABLE not in os.environ:
        yield ALONE
        return
    try:
        from mpi4py import MPI  # noqa: PLC0415 - importing it joins the MPI job
    except ImportError as error:
        raise NemotronError(
            f"started under MPI, but mpi4py cannot be loaded ({error})",
            remedy="pip install 'nemotron-triton[mpi]', or start one process",
        ) from error
    world = MPI.COMM_WORLD
    team = Team(world.Get_rank(), world.Get_size(), world if world.Get_size() > 1 else None)
    if rank_and_size is not None and team.world is None:
        _continue_alone(*rank_and_size)
    try:
        yield team
    except BaseException as error:
        if team.world is None:
            raise
        text = str(error) if isinstance(error, NemotronError) else repr(error)
        print(f"nemotron: process {team.rank} of {team.size}: {text}", file=sys.stderr, flush=True)
        world.Abort(error.exit_code if isinstance(error, NemotronError) else 1)
        raise


def _continue_alone(rank: int, size: int) -> None:
    """Return in the process of rank 0 and exit in the others."""
    if rank > 0:
        raise SystemExit(0)
    print(
        f"nemotron: MPI does not connect the {size} processes that were started, so the first works"
        " alone: use the launcher of this MPI (mpirun, or srun --mpi=pmix) to have all work",
        file=sys.stderr,
        flush=True,
    )
