"""The rank of a process and the first machine, from its launcher's environment variables."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from nemotron_core.errors import NemotronError

RANK_VARIABLES = {
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK": "PMI_SIZE",
    "MV2_COMM_WORLD_RANK": "MV2_COMM_WORLD_SIZE",
    "SLURM_PROCID": "SLURM_STEP_NUM_TASKS",
}
"""Variables of the rank and of the number of ranks: Open MPI, MPICH, MVAPICH, Slurm.

A batch script has SLURM_PROCID and SLURM_NTASKS too, but it is not a step of several tasks.
"""
MASTER_VARIABLE = "MASTER_ADDR"
"""Variable with the name of the first machine, as PyTorch reads it."""
NODE_LISTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
SLURM_PREFIXES = ("SLURM_", "SLURMD_", "SRUN_")
"""Prefixes of Slurm's variables, from which MPI concludes that Slurm starts its processes."""
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


def without_launcher(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a program that starts processes of its own on this machine."""
    return {
        name: text
        for name, text in without_rank(environment).items()
        if not name.startswith(SLURM_PREFIXES)
    }


def first_machine(environment: Mapping[str, str] = os.environ) -> str:
    """Return the name of the machine with rank 0.

    Raises `NemotronError` if neither MASTER_ADDR nor Slurm says it.
    """
    if name := environment.get(MASTER_VARIABLE):
        return name
    nodes = next((environment[name] for name in NODE_LISTS if name in environment), None)
    if nodes is None:
        raise NemotronError(
            f"{MASTER_VARIABLE} is not set", remedy="set it to the name of the first machine"
        )
    try:
        names = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise NemotronError(
            f"scontrol does not name the machines {nodes}: {error}",
            remedy=f"set {MASTER_VARIABLE} to the name of the first machine",
        ) from error
    return names.split()[0]
