"""Reading the index of a torch_dist checkpoint, `.metadata`, over its size.

A checkpoint of the 340B model with small chunks has millions of entries. Each index is read in a
process of its own; the CPU time must grow as the bytes do.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from bench.measurements.timing import in_turn, summary

ENTRIES = (150_000, 300_000, 600_000, 1_200_000)
"""Numbers of chunks; the largest index has about 160 MB."""
CODE = """
import json, sys, time
from pathlib import Path
from nemotron_convert.source.containers import open_archive
from nemotron_convert.source.torch_dist import TorchDist
archive = open_archive(Path(sys.argv[1]))
start, wall = time.process_time(), time.perf_counter()
TorchDist(archive, "weights/")
print(json.dumps({
    "cpu_seconds": time.process_time() - start,
    "seconds": time.perf_counter() - wall,
}))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--entries", type=int, nargs="+", default=ENTRIES)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {}
    for entries in options.entries:
        sizes[str(entries)] = write_index(options.work / str(entries), entries)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in sizes}
    for _, name in in_turn(options.runs, list(sizes)):
        command = [sys.executable, "-c", CODE, str(options.work / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[name].append(json.loads(done.stdout))
        print(name, rows[name][-1], flush=True)
    return {
        "rows": [
            {
                "entries": int(name),
                "bytes": sizes[name],
                **{key: summary([run[key] for run in runs]) for key in runs[0]},
            }
            for name, runs in rows.items()
        ]
    }


def write_index(folder: Path, entries: int) -> int:
    """Write a `.metadata` as PyTorch does, for a tensor of so many chunks; return its bytes."""
    size = torch.Size([8, 128])
    places = [torch.Size([8 * i, 0]) for i in range(entries)]
    tensor = TensorStorageMetadata(
        TensorProperties(dtype=torch.bfloat16),
        torch.Size([8 * entries, 128]),
        [ChunkStorageMetadata(place, size) for place in places],
    )
    storage = {
        MetadataIndex("a", place, i): _StorageInfo(f"__{i % 8}_0.distcp", 2048 * i, 2048)
        for i, place in enumerate(places)
    }
    path = folder / "weights" / ".metadata"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        pickle.dump(Metadata({"a": tensor}, None, storage), file)
    return path.stat().st_size
