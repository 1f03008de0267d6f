"""PyTorch's distributed checkpoints give the same bytes, and nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.source import torch_dist
from nemotron_convert.source.safe_pickle import load_pickle
from nemotron_convert.source.torch_dist import MEMORY_FACTOR, METADATA_GLOBALS, _read_index
from nemotron_convert.target.manifest import read_manifest
from nemotron_core.errors import NemotronError
from tests.convert.nemo import GOLDEN, NEMO, WEIGHTS, pack, unpack

# torch warns at every save outside a process group, even with `no_dist`.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

TORCH_DIST = GOLDEN / "tiny_torch_dist_tp1pp1.nemo"


def unpack_torch_dist(folder: Path) -> Path:
    with tarfile.open(TORCH_DIST) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("container", ["as it is", "folder", "gzip"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (8, 1), (16, 3)])
def test_megatrons_file_gives_the_same_checkpoint_as_its_zarr(
    container: str, tp: int, pp: int, tmp_path: Path
) -> None:
    source = TORCH_DIST
    if container != "as it is":
        source = unpack_torch_dist(tmp_path / "in")
    if container == "gzip":
        source = pack(source, tmp_path / "model.nemo", "w:gz")
    convert(NEMO, tmp_path / "expected", Options(Parallel(tp, pp)))
    convert(source, tmp_path / "out", Options(Parallel(tp, pp)))
    assert read_manifest(tmp_path / "out").files == read_manifest(tmp_path / "expected").files


NEMO2_MODEL = """
_target_: nemo.collections.llm.gpt.model.nemotron.NemotronModel
config:
  _target_: nemo.collections.llm.gpt.model.nemotron.Nemotron4Config340B
  activation_func:
    _call_: false
    _target_: nemo.collections.llm.fn.activation.squared_relu
  add_bias_linear: false
  ffn_hidden_size: 512
  hidden_size: 128
  kv_channels: 8
  layernorm_epsilon: 1.0e-05
  layernorm_zero_centered_gamma: true
  normalization: LayerNorm
  num_attention_heads: 16
  num_layers: 4
  num_query_groups: 8
  position_embedding_type: rope
  rotary_base: 10000
  rotary_percent: 0.5
  seq_length: 256
  share_embeddings_and_output_weights: false
tokenizer:
  _target_: nemo.collections.common.tokenizers.sentencepiece_tokenizer.SentencePieceTokenizer
  model_path: nemo_tokenizer/tokenizer.model
"""


def nemo2(folder: Path, *, zarr: bool) -> Path:
    """Write the golden model as a NeMo 2 folder."""
    unpack(folder)
    (folder / "context" / "nemo_tokenizer").mkdir(parents=True)
    next(folder.glob("*.model")).rename(folder / "context" / "nemo_tokenizer" / "tokenizer.model")
    (folder / "model_config.yaml").unlink()
    (folder / "context" / "model.yaml").write_text(NEMO2_MODEL)
    (folder / WEIGHTS).rename(folder / "weights")
    arrays = [path.parent for path in sorted((folder / "weights").glob("*/.zarray"))]
    if zarr:
        for path in arrays:
            path.rename(path.with_name(path.name.replace("model.", "module.", 1)))
        return folder
    tensors = {path.name.replace("model.", "module.", 1): read_zarr(path) for path in arrays}
    shutil.rmtree(folder / "weights")
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder / "weights"), no_dist=True)
    return folder


@pytest.mark.parametrize("zarr", [True, False])
def test_nemo_2(zarr: bool, tmp_path: Path) -> None:
    folder = nemo2(tmp_path / "in", zarr=zarr)
    expected = convert(NEMO, tmp_path / "expected", Options(Parallel(8, 1)))
    assert convert(folder, tmp_path / "out", Options(Parallel(8, 1))).files == expected.files


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("activation.squared_relu", "silu", "activation: '.*silu', but Nemotron-4 has"),
        ("LayerNorm", "RMSNorm", "normalization: 'rmsnorm'"),
        ("config:", "other:", "config: not there"),
        ("rope", "!!python/object/apply:os.abort []", "not plain YAML"),
        ("num_layers: 4", "num_layers: 5", "has shape"),
    ],
)
def test_a_nemo_2_folder_of_another_model(old: str, new: str, message: str, tmp_path: Path) -> None:
    folder = nemo2(tmp_path / "in", zarr=True)
    path = folder / "context" / "model.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(NemotronError, match=message):
        convert(folder, tmp_path / "out", Options(Parallel(8, 1)))


def test_a_nemo_2_folder_without_a_tokenizer(tmp_path: Path) -> None:
    folder = nemo2(tmp_path / "in", zarr=True)
    next(folder.rglob("*.model")).unlink()
    with pytest.raises(NemotronError, match="0 SentencePiece files"):
        convert(folder, tmp_path / "out", Options(Parallel(8, 1)))


def read_zarr(folder: Path) -> torch.Tensor:
    meta = json.loads((folder / ".zarray").read_text())
    shape, chunks = meta["shape"], meta["chunks"]
    array = np.empty(shape, np.uint16)
    for index in np.ndindex(*(n // c for n, c in zip(shape, chunks, strict=True))):
        place = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))
        words = np.fromfile(folder / ".".join(map(str, index)), np.uint16)
        array[place] = words.reshape(chunks)
    return torch.from_numpy(array).view(torch.bfloat16)


def test_this_pytorchs_own_file_gives_it_too(tmp_path: Path) -> None:
    """A newer version of the format than Megatron's file has, with one block per tensor."""
    folder = unpack(tmp_path / "in")
    zarrs = sorted((folder / WEIGHTS).glob("*/.zarray"))
    tensors = {path.parent.name: read_zarr(path.parent) for path in zarrs}
    shutil.rmtree(folder / WEIGHTS)
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder / WEIGHTS), no_dist=True)
    convert(NEMO, tmp_path / "expected", Options(Parallel(2, 2)))
    convert(folder, tmp_path / "out", Options(Parallel(2, 2)))
    assert read_manifest(tmp_path / "out").files == read_manifest(tmp_path / "expected").files


class Attack:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def nested(depth: int) -> bytes:
    return b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."


# LONG_BINPUT to index 2³¹ - 1: the unpickler in C would reserve memory for all indexes.
MEMO_BOMB = b"\x80\x04Nr" + struct.pack("<I", 2**31 - 1) + b"."

PICKLES: dict[str, tuple[bytes, str]] = {
    "system": (pickle.dumps(Attack(os.system, "touch {marker}")), r"asks for posix\.system"),
    "eval": (pickle.dumps(Attack(eval, "1")), r"asks for builtins\.eval"),
    "open": (pickle.dumps(Attack(open, "{marker}", "w")), r"asks for (io|_io)\.open"),
    "getattr": (pickle.dumps(Attack(getattr, "x", "y")), r"asks for builtins\.getattr"),
    "torch loader": (b"\x80\x02ctorch.hub\nload\n.", r"asks for torch\.hub\.load"),
    "long name": (b"c" + b"a" * 5000 + b"\nb\n.", "asks for aaa"),
    "deep": (nested(100_000), "not a checkpoint's index"),
    "memo": (MEMO_BOMB, "not a checkpoint's index"),
    "empty": (b"", "not a whole pickle"),
    "cut": (b"\x80\x04]q", "not a whole pickle"),
    "huge string": (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a.", "not a whole pickle"),
    "a number": (pickle.dumps(7), "not a checkpoint's index"),
    "extension": (b"\x80\x02\x82\x01.", "not a whole pickle"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_index_is_refused_and_nothing_in_it_runs(name: str, tmp_path: Path) -> None:
    data, message = PICKLES[name]
    marker = tmp_path / "ran"
    folder = unpack_torch_dist(tmp_path / "in")
    (folder / WEIGHTS / ".metadata").write_bytes(data.replace(b"{marker}", bytes(marker)))
    with pytest.raises(NemotronError, match=message) as caught:
        convert(folder, tmp_path / "out", Options(Parallel(1, 1)))
    assert len(str(caught.value)) < 600
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_a_pickle_cannot_change_a_class_for_the_next_one() -> None:
    """The pickle applies BUILD to a class instead of an instance."""
    allowed = [("torch", "Size")]
    data = b"\x80\x02ctorch\nSize\n}X\x01\x00\x00\x00aK\x01sb."
    with pytest.raises(NemotronError, match="not a whole pickle"):
        load_pickle(data, allowed, where="here")
    fresh = load_pickle(b"\x80\x02ctorch\nSize\n)R.", allowed, where="here")
    assert not hasattr(fresh, "a")


FILE_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / "__0_1.distcp").unlink(), r"__0_1\.distcp is missing"),
    "cut": (lambda f: os.truncate(f / "__0_0.distcp", 500_000), "the file has 500000"),
    "empty": (lambda f: (f / "__0_0.distcp").write_bytes(b""), "the file has 0"),
    "zeros": (
        lambda f: (f / "__0_0.distcp").write_bytes(bytes((f / "__0_0.distcp").stat().st_size)),
        "not a file of torch.save",
    ),
    "no index": (lambda f: (f / ".metadata").unlink(), r"no \.metadata beside the weights"),
}


@pytest.mark.parametrize("name", FILE_DAMAGE)
def test_a_damaged_file(name: str, tmp_path: Path) -> None:
    damage, message = FILE_DAMAGE[name]
    folder = unpack_torch_dist(tmp_path / "in")
    damage(folder / WEIGHTS)
    with pytest.raises(NemotronError, match=message):
        convert(folder, tmp_path / "out", Options(Parallel(1, 1)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.double(), "asks for torch.float64"),
        (lambda t: t[:, :-1].contiguous(), "has shape"),
        (lambda t: t.T.contiguous().T, "is not contiguous"),
        (None, "is missing"),
    ],
)
def test_a_tensor_that_is_not_what_it_should_be(
    change: Callable[[torch.Tensor], torch.Tensor] | None, message: str, tmp_path: Path
) -> None:
    name = "model.output_layer.weight"
    folder = unpack(tmp_path / "in")
    zarrs = sorted((folder / WEIGHTS).glob("*/.zarray"))
    tensors = {path.parent.name: read_zarr(path.parent) for path in zarrs}
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    shutil.rmtree(folder / WEIGHTS)
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder / WEIGHTS), no_dist=True)
    with pytest.raises(NemotronError, match=f"{name}.*{message}|{message}"):
        convert(folder, tmp_path / "out", Options(Parallel(1, 1)))


def split_by_two(folder: Path, tmp_path: Path) -> None:
    """Save the golden model as two ranks of Megatron would: one tensor for each layer.

    Matrices are split over the ranks, norms are the same on both; each rank writes its own files.
    """
    zarrs = sorted((folder / WEIGHTS).glob("*/.zarray"))
    tensors = {path.parent.name: read_zarr(path.parent) for path in zarrs}
    shutil.rmtree(folder / WEIGHTS)
    torch.save(tensors, tmp_path / "tensors.pt")
    command = [sys.executable, "-m", "tests.convert.save_sharded", tmp_path / "tensors.pt"]
    subprocess.run([*command, folder / WEIGHTS], check=True, cwd=GOLDEN.parents[1])


def test_a_tensor_for_each_layer_split_over_two_ranks(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    split_by_two(folder, tmp_path)
    assert len(list((folder / WEIGHTS).glob("*.distcp"))) == 2
    convert(NEMO, tmp_path / "expected", Options(Parallel(4, 2)))
    old = {"sharded_backend": "torch_dist"}
    new = {"sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
    for number, keys in enumerate((old, old | new)):
        (folder / WEIGHTS / "metadata.json").write_text(json.dumps(keys))
        manifest = convert(folder, tmp_path / f"out{number}", Options(Parallel(4, 2)))
        assert manifest.files == read_manifest(tmp_path / "expected").files


def index_of(chunks: int) -> bytes:
    """Return a `.metadata` as PyTorch writes it, with so many chunks."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    size = torch.Size([8, 128])
    places = [torch.Size([8 * i, 0]) for i in range(chunks)]
    tensor = TensorStorageMetadata(
        TensorProperties(dtype=torch.bfloat16),
        torch.Size([8 * chunks, 128]),
        [ChunkStorageMetadata(place, size) for place in places],
    )
    storage = {
        MetadataIndex("a", place, i): _StorageInfo(f"__{i % 8}_0.distcp", i, 1)
        for i, place in enumerate(places)
    }
    return pickle.dumps(Metadata({"a": tensor}, None, storage))


def test_an_index_takes_memory_in_proportion_to_its_size() -> None:
    """What the reader keeps is bounded by `MEMORY_FACTOR`, so it needs no limit of its own."""
    for chunks in (500, 5_000):
        data = index_of(chunks)
        tracemalloc.start()
        metadata = load_pickle(data, METADATA_GLOBALS, where="here")
        tensors, _ = _read_index(metadata)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(tensors["a"].blocks) == chunks
        assert peak < MEMORY_FACTOR * len(data)


def test_an_index_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = unpack_torch_dist(tmp_path / "in")
    size = (folder / WEIGHTS / ".metadata").stat().st_size
    monkeypatch.setattr(torch_dist, "free_memory", lambda: size * MEMORY_FACTOR - 1)
    with pytest.raises(NemotronError, match=r"may take .* bytes of memory.*\.metadata"):
        convert(folder, tmp_path / "out", Options(Parallel(1, 1)))
