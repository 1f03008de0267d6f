"""What `trtllm-llmapi-launch` runs on every rank but the first: it computes what the first says."""

from __future__ import annotations

import time

from mpi4py import MPI

LOAD_TAG, END_TAG = 1, 2
POLL_SECONDS = 0.05


def main() -> None:
    world, status = MPI.COMM_WORLD, MPI.Status()
    while True:
        while not world.Iprobe(source=0, status=status):  # a blocking receive would spin on a core
            time.sleep(POLL_SECONDS)
        world.recv(source=0, tag=status.Get_tag())
        if status.Get_tag() == END_TAG:
            break
        world.Barrier()
    MPI.Finalize()


if __name__ == "__main__":
    main()
