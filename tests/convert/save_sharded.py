"""Save tensors as two ranks would, in torch_dist: TENSORS.pt FOLDER.

The two ranks are processes of one gloo group. Stacked tensors become one for each layer; matrices
are split over the ranks, vectors are replicated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

RANKS = 2
LAYERS = "model.decoder.layers."
BY_COLUMNS = ("linear_proj.weight", "linear_fc2.weight")


def save(rank: int, tensors_file: str, folder: str, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    state = {}
    for name, tensor in torch.load(tensors_file).items():
        parts = {name: tensor}
        if name.startswith(LAYERS):
            rest = name.removeprefix(LAYERS)
            parts = {f"{LAYERS}{i}.{rest}": layer for i, layer in enumerate(tensor)}
        for part_name, part in parts.items():
            axis = 1 if part_name.endswith(BY_COLUMNS) else 0
            placement = Shard(axis) if part.ndim == 2 else Replicate()
            state[part_name] = distribute_tensor(part.contiguous(), mesh, [placement])
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder))
    dist.destroy_process_group()


if __name__ == "__main__":
    store = str(Path(sys.argv[1]).with_name("store"))
    # Forked, because importing torch takes longer than all the rest.
    mp.start_processes(save, (sys.argv[1], sys.argv[2], store), nprocs=RANKS, start_method="fork")
