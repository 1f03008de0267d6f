"""Pickles and zips of `torch.save` that would run code, hang, or state a false size."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from tests.attacks.guard import Attack, Build, try_attack
from tests.convert.nemo import WEIGHTS, edit_zarray, unpack
from tests.convert.test_torch_dist import unpack_torch_dist

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

QKV = "model.decoder.layers.self_attention.linear_qkv.weight"
PAIRS = b"K\x00" + b"q\x00h\x00\x86" * 60
"""Pairs nested 60 deep: hashing, comparing or printing them visits 2⁶⁰ zeros."""
PACKED_SIZE, SIZE = 20, 24
"""Offsets of an entry's two sizes in the zip's directory."""


def index(data: bytes) -> Build:
    """Return a builder of a torch_dist checkpoint whose index is `data`."""

    def build(folder: Path) -> Path:
        nemo = unpack_torch_dist(folder / "in")
        (nemo / WEIGHTS / ".metadata").write_bytes(data)
        return nemo

    return build


def saved(data: bytes, rank: str = "", **directory: int) -> Build:
    """Return a builder of a rank's file with the pickle `data` and edited directory fields."""

    def build(folder: Path) -> Path:
        nemo = unpack(folder / "in")
        shutil.rmtree(nemo / WEIGHTS)
        (nemo / rank).mkdir(exist_ok=True)
        path = nemo / rank / "model_weights.ckpt"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", data)
        content = bytearray(path.read_bytes())
        entry = content.index(b"PK\x01\x02")
        for field, value in directory.items():
            struct.pack_into("<I", content, entry + globals()[field], value)
        path.write_bytes(content)
        return nemo

    return build


def vast(*, packed: bool) -> Build:
    """Return a builder of an array with 2³⁸ layers in one chunk that takes no space on disk."""

    def build(folder: Path) -> Path:
        nemo = unpack(folder / "in")
        for path in (nemo / WEIGHTS / QKV).glob("[0-9]*"):
            path.unlink()
        chunk = nemo / WEIGHTS / QKV / "0.0.0"
        chunk.write_bytes(zlib.compress(b"x") if packed else b"")
        if not packed:
            os.truncate(chunk, 1 << 40)
        size = [1 << 38, 1, 2]
        edit_zarray(
            nemo, QKV, shape=size, chunks=size, compressor={"id": "zlib"} if packed else None
        )
        return nemo

    return build


def cut_checksum(folder: Path) -> Path:
    nemo = unpack(folder / "in")
    for path in (nemo / WEIGHTS / QKV).glob("[0-9]*"):
        path.write_bytes(zlib.compress(path.read_bytes()))
    chunk = nemo / WEIGHTS / QKV / "1.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-4])
    edit_zarray(nemo, QKV, compressor={"id": "zlib"})
    return nemo


ATTACKS = {
    "index: a key that hashes for ever": Attack(index(b"\x80\x02}" + PAIRS + b"Ns."), "a tuple"),
    "index: escape codes": Attack(index(b"c\x1b[2J\nx\n."), r"asks for \\x1b\[2J\.x"),
    "torch.save: a key that hashes for ever": Attack(
        saved(b"\x80\x02}" + PAIRS + b"Ns."), "a tuple"
    ),
    "torch.save: a set that hashes for ever": Attack(
        saved(b"\x80\x04\x8f(" + PAIRS + b"\x90."), "not a whole pickle"
    ),
    "torch.save: a number of 100,000 digits": Attack(
        saved(b"L" + b"9" * 100_000 + b"L\n."), "not a whole pickle"
    ),
    "torch.save: an entry with two sizes": Attack(
        saved(pickle.dumps({}), PACKED_SIZE=1 << 31), "data.pkl has two sizes"
    ),
    "torch.save: an entry of 2 GiB": Attack(
        saved(pickle.dumps({}), PACKED_SIZE=1 << 31, SIZE=1 << 31), "data.pkl has 2147483648 bytes"
    ),
    "torch.save: a trillion ranks by name": Attack(
        saved(pickle.dumps({}), "tp_rank_99999_pp_rank_9999999"), "TP rank 0, .* is missing"
    ),
    "zarr: 2³⁸ layers in a hole": Attack(vast(packed=False), "has 274877906944 layers"),
    "zarr: 2³⁸ layers compressed": Attack(vast(packed=True), "has 274877906944 layers"),
    "zarr: a compressed chunk without its checksum": Attack(cut_checksum, "it ends elsewhere"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_file(name: str, tmp_path: Path) -> None:
    try_attack(ATTACKS[name], tmp_path)
