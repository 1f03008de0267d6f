"""The rank of a process, from the environment variables of its launcher."""

from __future__ import annotations

import os
from collections.abc import Mapping

RANK_VARIABLES = {
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK": "PMI_SIZE",
    "MV2_COMM_WORLD_RANK": "MV2_COMM_WORLD_SIZE",
    "SLURM_PROCID": "SLURM_STEP_NUM_TASKS",
}
"""Variables of the rank and of the number of ranks: Open MPI, MPICH, MVAPICH, Slurm.

A batch script has SLURM_PROCID and SLURM_NTASKS too, but it is not a step of several tasks.
"""
PREFIXES = ("OMPI_COMM_WORLD_", "PMI_", "PMIX_", "MV2_COMM_WORLD_", "SLURM_STEP_")
"""Prefixes of the variables that a launcher sets for one process."""


def own_rank(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Return this process's rank and the number of ranks, or `None` for a process on its own."""
    for rank, size in RANK_VARIABLES.items():
        if rank in environment and int(environment.get(size, "1")) > 1:
            return int(environment[rank]), int(environment[size])
    return None


def without_rank(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a program that a rank starts and that is not a rank itself.

    With the launcher's variables, such a program would wait for the other ranks.
    """
    return {name: text for name, text in environment.items() if not name.startswith(PREFIXES)}
