"""Checkpoints with one pickle per rank, as NeMo saved them before distributed checkpoints."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron_convert.convert import Options, convert
from nemotron_convert.inspect import inspect
from nemotron_convert.shards import Parallel
from nemotron_convert.target.manifest import read_manifest
from nemotron_core.errors import NemotronError
from tests.convert.nemo import NEMO, WEIGHTS, pack, unpack
from tests.convert.test_torch_dist import PICKLES, read_zarr

LAYERS = "model.decoder.layers."
BY_COLUMNS = ("linear_proj.weight", "linear_fc2.weight")


def legacy(folder: Path, tp: int, pp: int) -> Path:
    """Write the golden model as TP × PP ranks would have saved it."""
    unpack(folder)
    zarrs = sorted((folder / WEIGHTS).glob("*/.zarray"))
    tensors = {path.parent.name: read_zarr(path.parent) for path in zarrs}
    shutil.rmtree(folder / WEIGHTS)
    for stage, layers in enumerate(torch.arange(4).tensor_split(pp)):
        for rank in range(tp):
            state: OrderedDict[str, Any] = OrderedDict()
            for name, tensor in tensors.items():
                first = name.startswith("model.embedding") and stage == 0
                last = name.startswith(("model.output", "model.decoder.final")) and stage == pp - 1
                if first or last:
                    state[name] = rank_shard(name, tensor, rank, tp)
                elif name.startswith(LAYERS):
                    for local, layer in enumerate(layers.tolist()):
                        rest = name.removeprefix(LAYERS)
                        state[f"{LAYERS}{local}.{rest}"] = rank_shard(name, tensor[layer], rank, tp)
            state[LAYERS + "0.mlp.linear_fc1._extra_state"] = io.BytesIO(b"scales")
            state[LAYERS + "0.mlp.linear_fc2._extra_state"] = None
            name = "" if tp == pp == 1 else f"mp_rank_{rank:02d}"
            name = f"tp_rank_{rank:02d}_pp_rank_{stage:03d}" if pp > 1 else name
            (folder / name).mkdir(exist_ok=True)
            torch.save(state, folder / name / "model_weights.ckpt")
    return folder


def rank_shard(name: str, tensor: torch.Tensor, rank: int, tp: int) -> torch.Tensor:
    if tensor.ndim == 1:
        return tensor.clone()
    return tensor.chunk(tp, 1 if name.endswith(BY_COLUMNS) else 0)[rank].clone()


@pytest.mark.parametrize("container", ["folder", "tar"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (8, 1), (2, 3)])
def test_ranks_of_any_split_give_the_same_checkpoint(
    tp: int, pp: int, container: str, tmp_path: Path
) -> None:
    source = legacy(tmp_path / "in", tp, pp)
    if container == "tar":
        source = pack(source, tmp_path / "model.nemo")
    assert inspect(source).layout == "legacy"
    convert(NEMO, tmp_path / "expected", Options(Parallel(4, 2)))
    convert(source, tmp_path / "out", Options(Parallel(4, 2)))
    assert read_manifest(tmp_path / "out").files == read_manifest(tmp_path / "expected").files


def test_views_of_one_storage_are_read_where_they_begin(tmp_path: Path) -> None:
    folder = legacy(tmp_path / "in", 1, 1)
    path = folder / "model_weights.ckpt"
    state = torch.load(path, weights_only=False)
    table = state["model.output_layer.weight"]
    state["model.output_layer.weight"] = torch.cat([torch.ones_like(table), table])[len(table) :]
    torch.save(state, path)
    convert(NEMO, tmp_path / "expected", Options(Parallel(2, 1)))
    convert(folder, tmp_path / "out", Options(Parallel(2, 1)))
    assert read_manifest(tmp_path / "out").files == read_manifest(tmp_path / "expected").files


def change(**tensors: Callable[[torch.Tensor], torch.Tensor] | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "mp_rank_01" / "model_weights.ckpt"
        state = torch.load(path, weights_only=False)
        for ending, edit in tensors.items():
            (name,) = (n for n in state if n.endswith(ending.replace("__", ".")))
            state[name] = edit(state[name]) if edit else state.pop(name) and None
        torch.save({k: v for k, v in state.items() if v is not None}, path)

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "rank missing": (
        lambda f: shutil.rmtree(f / "mp_rank_00"),
        "of TP rank 0, pipeline stage 0 is missing",
    ),
    "cut": (
        lambda f: os.truncate(f / "mp_rank_01" / "model_weights.ckpt", 300_000),
        "not a file of torch.save",
    ),
    "shard of another size": (
        change(output_layer__weight=lambda t: t[:-1].clone()),
        r"output_layer\.weight has shape \[511, 128\]",
    ),
    "shard that is a vector": (
        change(output_layer__weight=lambda t: t[0].clone()),
        r"output_layer\.weight is missing or misshapen",
    ),
    "float32": (
        change(output_layer__weight=lambda t: t.float()),
        r"the shards of tensor model\.output_layer\.weight are BF16, F32",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_rank(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    folder = legacy(tmp_path / "in", 2, 1)
    damage(folder)
    with pytest.raises(NemotronError, match=message):
        convert(folder, tmp_path / "out", Options(Parallel(1, 1)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["system", "eval", "deep", "memo"])
def test_a_hostile_pickle_runs_nothing(name: str, tmp_path: Path) -> None:
    import zipfile

    marker = tmp_path / "ran"
    folder = unpack(tmp_path / "in")
    shutil.rmtree(folder / WEIGHTS)
    with zipfile.ZipFile(folder / "model_weights.ckpt", "w") as file:
        file.writestr("a/data.pkl", PICKLES[name][0].replace(b"{marker}", bytes(marker)))
    with pytest.raises(NemotronError, match=r"asks for|not a state dict|is missing"):
        convert(folder, tmp_path / "out", Options(Parallel(1, 1)))
    assert not marker.exists()


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    shutil.rmtree(folder / WEIGHTS)
    (folder / "model_weights.ckpt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(NemotronError, match=r"not a file of torch\.save"):
        convert(folder, tmp_path / "out", Options(Parallel(1, 1)))
