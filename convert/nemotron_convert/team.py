"""The processes of one `mpirun`, or the only one."""

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
"""Some launchers that speak PMIx tell nothing else."""


@dataclass(frozen=True)
class Team:
    """A process's place among `size`; process 0 leads."""

    rank: int = 0
    size: int = 1
    world: Any = None
    """mpi4py's COMM_WORLD, if there is more than one process."""

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world is not None:
            self.world.Barrier()

    def gather(self, value: T) -> list[T]:
        """Every process's value, on every process, by rank."""
        return [value] if self.world is None else self.world.allgather(value)

    def sum(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sum of every process's array, on every process; in place."""
        if self.world is not None:
            from mpi4py import MPI  # noqa: PLC0415 - it is there, for it has made `world`

            self.world.Allreduce(MPI.IN_PLACE, values)
        return values

    def broadcast(self, value: T | None) -> T:
        """The leader's value, on every process."""
        shared = value if self.world is None else self.world.bcast(value)
        return cast(T, shared)


ALONE = Team()


@contextmanager
def open_team() -> Iterator[Team]:
    """The processes that `mpirun` or `srun` has started together.

    If one fails, it says why and ends them all: the others would wait for it forever. Where MPI
    does not connect them (`srun --mpi=pmi2` and an MPI that speaks only PMIx), the first says so
    and works alone, and the others end here with status 0. NemotronError if there are several and
    mpi4py is missing, for each would do the whole work.
    """
    place = own_rank()
    if place is None and PMIX_VARIABLE not in os.environ:
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
    if place is not None and team.world is None:
        _go_on_alone(*place)
    try:
        yield team
    except BaseException as error:
        if team.world is None:
            raise
        what = str(error) if isinstance(error, NemotronError) else repr(error)
        print(f"nemotron: process {team.rank} of {team.size}: {what}", file=sys.stderr, flush=True)
        world.Abort(error.exit_code if isinstance(error, NemotronError) else 1)
        raise


def _go_on_alone(rank: int, size: int) -> None:
    """Return in the first of the processes; end the others."""
    if rank > 0:
        raise SystemExit(0)
    print(
        f"nemotron: MPI does not connect the {size} processes that were started, so the first works"
        " alone: use the launcher of this MPI (mpirun, or srun --mpi=pmix) to have all work",
        file=sys.stderr,
        flush=True,
    )
