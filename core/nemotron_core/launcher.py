"""The place that a launcher gives a process, as its environment tells."""

from __future__ import annotations

import os
from collections.abc import Mapping

RANK_VARIABLES = {
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK": "PMI_SIZE",
    "MV2_COMM_WORLD_RANK": "MV2_COMM_WORLD_SIZE",
    "SLURM_PROCID": "SLURM_STEP_NUM_TASKS",
}
"""How Open MPI, MPICH, MVAPICH and Slurm tell a process its rank, and how many there are.

A batch script has a SLURM_PROCID too, and SLURM_NTASKS, but is no step of many tasks.
"""
OF_ONE_RANK = ("OMPI_COMM_WORLD_", "PMI_", "PMIX_", "MV2_COMM_WORLD_", "SLURM_STEP_")
"""Beginnings of the names of what a launcher tells one process."""


def own_rank(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Of this process, and the number of ranks; None outside a launcher of many."""
    for rank, size in RANK_VARIABLES.items():
        if rank in environment and int(environment.get(size, "1")) > 1:
            return int(environment[rank]), int(environment[size])
    return None


def without_rank(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For a program that a rank starts and that is none itself; it must not wait for the others."""
    return {name: text for name, text in environment.items() if not name.startswith(OF_ONE_RANK)}
