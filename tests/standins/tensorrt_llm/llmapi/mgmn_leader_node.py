"""What `trtllm-llmapi-launch` runs on the first rank: it waits for a model, forever if need be."""

from __future__ import annotations

import os
from multiprocessing.connection import Listener

from mpi4py import MPI

from ..session import ADDRESS, END, KEY, LOAD
from .mgmn_worker_node import END_TAG, LOAD_TAG


def main() -> None:
    world = MPI.COMM_WORLD
    host, _, port = os.environ[ADDRESS].removeprefix("tcp://").partition(":")
    with Listener((host, int(port)), authkey=bytes.fromhex(os.environ[KEY])) as listener:
        message = None
        while message != END:
            with listener.accept() as model:
                try:
                    while (message := model.recv()) == LOAD:
                        for rank in range(1, world.Get_size()):
                            world.send(None, dest=rank, tag=LOAD_TAG)
                        world.Barrier()  # nobody is ready before all have loaded
                        model.send(world.Get_size())
                except EOFError:
                    message = None
    for rank in range(1, world.Get_size()):
        world.send(None, dest=rank, tag=END_TAG)
    MPI.Finalize()


if __name__ == "__main__":
    main()
