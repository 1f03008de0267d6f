"""Where the ranks come from: processes of this one's own, or those of `trtllm-llmapi-launch`."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Client

SPAWN = "TLLM_SPAWN_PROXY_PROCESS"
ADDRESS, KEY = f"{SPAWN}_IPC_ADDR", f"{SPAWN}_IPC_HMAC_KEY"
SIZE = "tllm_mpi_size"
MPI_PREFIXES = ("OMPI_COMM_WORLD_", "PMI_", "PMIX_")
LOAD, END = "load", "end"
POLL_SECONDS = 0.1


class Session:
    """The ranks of one model. Under the launcher, its leader must have as many as the model."""

    def __init__(self, world_size: int) -> None:
        # The only process of an mpirun is no rank of others: it spawns its ranks.
        is_alone = os.environ.get("OMPI_COMM_WORLD_SIZE") == "1"
        if not is_alone and (rank := [n for n in os.environ if n.startswith(MPI_PREFIXES)]):
            raise RuntimeError(f"this process would take the place of a rank in MPI: {rank[0]}")
        self._leader = None
        if SPAWN not in os.environ:
            return
        if (workers := int(os.environ[SIZE])) != world_size:
            raise ValueError(f"session has {workers} workers, the model needs {world_size}")
        host, _, port = os.environ[ADDRESS].removeprefix("tcp://").partition(":")
        while True:
            try:
                self._leader = Client((host, int(port)), authkey=bytes.fromhex(os.environ[KEY]))
                break
            except ConnectionRefusedError:
                time.sleep(POLL_SECONDS)
        self._leader.send(LOAD)
        assert self._leader.recv() == world_size

    def shutdown(self) -> None:
        if self._leader is not None:
            self._leader.send(END)
            self._leader.close()
