"""Variants of the golden `.nemo`: unpacked, packed, edited, compressed, with other chunks."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numcodecs.abc import Codec

GOLDEN = Path(__file__).parents[1] / "golden"
NEMO = GOLDEN / "tiny_zarr_tp1pp1.nemo"
WEIGHTS = "model_weights"


def unpack(folder: Path) -> Path:
    """Unpack the golden `.nemo` into `folder`."""
    with tarfile.open(NEMO) as tar:
        tar.extractall(folder, filter="data")
    return folder


def pack(folder: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, ".")
    return path


def edit_config(folder: Path, edit: Callable[[str], str]) -> Path:
    config = folder / "model_config.yaml"
    config.write_text(edit(config.read_text()))
    return folder


def edit_zarray(folder: Path, tensor: str, **keys: object) -> None:
    path = folder / WEIGHTS / tensor / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def compress(folder: Path, tensor: str, compressor: Codec) -> None:
    """Compress the chunks of a tensor, as zarr does."""
    for chunk in (folder / WEIGHTS / tensor).glob("[0-9]*"):
        chunk.write_bytes(bytes(compressor.encode(chunk.read_bytes())))
    edit_zarray(folder, tensor, compressor=compressor.get_config())


def rechunk(folder: Path, tensor: str, chunks: tuple[int, ...]) -> None:
    """Store a tensor with chunks of another size; those at its far edges are padded."""
    path = folder / WEIGHTS / tensor
    meta = json.loads((path / ".zarray").read_text())
    shape, old = meta["shape"], meta["chunks"]
    array = np.empty(shape, np.uint16)
    for index in np.ndindex(*(-(-n // c) for n, c in zip(shape, old, strict=True))):
        place = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, old, strict=True))
        words = np.fromfile(path / ".".join(map(str, index)), np.uint16).reshape(old)
        target = array[place]
        target[...] = words[tuple(slice(0, n) for n in target.shape)]
    shutil.rmtree(path)
    path.mkdir()
    (path / ".zarray").write_text(json.dumps(meta | {"chunks": list(chunks)}))
    for index in np.ndindex(*(-(-n // c) for n, c in zip(shape, chunks, strict=True))):
        place = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))
        chunk = np.full(chunks, 0x7FC0, np.uint16)  # NaN where no value of the array lies
        part = array[place]
        chunk[tuple(slice(0, n) for n in part.shape)] = part
        chunk.tofile(path / ".".join(map(str, index)))


def add_array(
    folder: Path, name: str, shape: tuple[int, ...], dtype: str = "bfloat16", *, size: int = 2
) -> None:
    """Add an array of zeros that is one chunk; `size` is that of a number in bytes."""
    path = folder / WEIGHTS / name
    path.mkdir(parents=True)
    meta = {"zarr_format": 2, "shape": shape, "chunks": shape, "dtype": dtype, "order": "C"}
    rest = {"compressor": None, "filters": None, "fill_value": None}
    (path / ".zarray").write_text(json.dumps(meta | rest))
    (path / ".".join("0" * len(shape))).write_bytes(bytes(size * int(np.prod(shape))))


def add_settings(folder: Path, **settings: object) -> None:
    """Append settings to the configuration; YAML takes the last of two."""
    with (folder / "model_config.yaml").open("a") as config:
        config.writelines(f"{name}: {json.dumps(value)}\n" for name, value in settings.items())


def unstack(folder: Path, prefix: str = "model.decoder.layers.") -> None:
    """Store each layer's tensors by themselves, as Megatron does since 0.15."""
    weights = folder / WEIGHTS
    for path in sorted(weights.glob(f"{prefix}*")):
        meta_file = path / ".zarray"
        if meta_file.exists():
            meta = json.loads(meta_file.read_text())
            for layer in range(meta["shape"][0]):
                own = weights / f"{prefix}{layer}.{path.name.removeprefix(prefix)}"
                own.mkdir()
                chunks = {"shape": meta["shape"][1:], "chunks": meta["chunks"][1:]}
                (own / ".zarray").write_text(json.dumps(meta | chunks))
                for chunk in path.glob(f"{layer}.*"):
                    shutil.copy(chunk, own / chunk.name.partition(".")[2])
        shutil.rmtree(path)
