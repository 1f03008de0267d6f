"""Conversions of a base model with adapters, what they leave behind, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemotron_convert.calibration.options import CalibrationOptions
from nemotron_convert.convert import Options, convert
from nemotron_convert.inspect import inspect, inspect_checkpoint
from nemotron_convert.shards import Parallel
from nemotron_convert.source.contents import Contents
from nemotron_convert.source.nemo import Source
from nemotron_convert.source.prompt_table import read_prompt_table
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import Dtype, Format, Precision
from nemotron_convert.target.manifest import read_manifest
from nemotron_core.errors import NemotronError
from tests.convert.adapters import (
    ALL,
    BASE,
    CUSTOM,
    LAYER_COUNT,
    LAYERS,
    QKV,
    Tensors,
    ia3,
    ia3_config,
    lora_changes,
    read_adapter,
    read_config,
    selected,
    tar,
    write_adapter,
    write_nemo2,
)
from tests.convert.nemo import NEMO as OTHER_BASE
from tests.convert.nemo import WEIGHTS
from tests.convert.test_torch_dist import read_zarr
from tests.tiny_nemotron.nemo_file import read_members

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
IDS = [[5, 911, 277, 24, 799, 274], list(range(40, 90))]
# torch warns at every save outside a process group, even with `no_dist`.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the base model with a LoRA in its weights, computed with torch in F32."""
    folder = tmp_path_factory.mktemp("whole")
    for name, data in read_members(BASE).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for name, change in lora_changes(read_adapter(ALL), 1.0).items():
        path = folder / WEIGHTS / name
        meta = json.loads((path / ".zarray").read_text())
        merged = (read_zarr(path).float() + change).bfloat16()
        shutil.rmtree(path)
        path.mkdir()
        meta["chunks"] = [1, *meta["shape"][1:]]
        (path / ".zarray").write_text(json.dumps(meta))
        for layer in range(LAYER_COUNT):
            merged[layer].view(torch.uint16).numpy().tofile(path / f"{layer}.0.0")
    return folder


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(IDS))
    return path


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (8, 1), (16, 1), (2, 3), (4, 2)])
def test_every_split_has_the_bytes_of_the_merged_model(
    tp: int, pp: int, whole: Path, tmp_path: Path
) -> None:
    expected = convert(whole, tmp_path / "expected", Options(Parallel(tp, pp)))
    given = convert(BASE, tmp_path / "out", Options(Parallel(tp, pp), adapters=(ALL,)))
    assert given.files == expected.files


@pytest.mark.parametrize("kv_cache", [Dtype.BF16, Dtype.FP8])
def test_fp8_is_calibrated_on_the_merged_model(
    kv_cache: Dtype, whole: Path, ids: Path, tmp_path: Path
) -> None:
    calibration = CalibrationOptions(ids=ids, devices="cpu")
    options = {"precision": Precision(Dtype.FP8, kv_cache), "calibration": calibration}
    expected = convert(whole, tmp_path / "expected", Options(Parallel(2, 1), **options))  # type: ignore[arg-type]
    given = convert(BASE, tmp_path / "out", Options(Parallel(2, 1), adapters=(ALL,), **options))  # type: ignore[arg-type]
    for name in ("rank0.safetensors", "rank1.safetensors", "config.json"):
        assert given.files[name] == expected.files[name]


def test_scales_of_the_base_are_used_with_a_warning(
    ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fp8 = Precision(Dtype.FP8)
    calibration = CalibrationOptions(ids=ids, devices="cpu")
    given = Options(Parallel(1, 1), precision=fp8, calibration=calibration)
    convert(BASE, tmp_path / "base", given)
    scales = CalibrationOptions(scales=tmp_path / "base" / "calibration.json")
    options = Options(Parallel(1, 1), precision=fp8, calibration=scales, adapters=(ALL,))
    capsys.readouterr()
    convert(BASE, tmp_path / "out", options)
    assert "calibrated without the adapters" in capsys.readouterr().err
    convert(BASE, tmp_path / "again", Options(Parallel(1, 1), precision=fp8, calibration=scales))
    assert capsys.readouterr().err == ""


def test_hugging_face(whole: Path, tmp_path: Path) -> None:
    hf = Options(Parallel(1, 1), Format.HF)
    expected = convert(whole, tmp_path / "expected", hf)
    given = Options(Parallel(1, 1), Format.HF, adapters=(ALL,))
    assert convert(BASE, tmp_path / "out", given).files == expected.files


def nemotron(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [NEMOTRON, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_manifest_names_base_and_adapters(tmp_path: Path) -> None:
    write_adapter(tmp_path / "ia3", ia3(), ia3_config())
    done = nemotron("convert", "--base", BASE, QKV, "ia3", "-o", "out", "--tp", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tiny_nemotron.nemo with lora_qkv_tp1.nemo, ia3" in done.stdout
    manifest = read_manifest(tmp_path / "out")
    assert manifest.source == "tiny_nemotron.nemo"
    lora, scalers = manifest.adapters
    assert (lora.file, lora.kind, scalers.kind) == (QKV.name, "LoRA adapter", "IA3 adapter")
    assert lora.details == "rank 8, alpha 16, scale 2, nemo, self_attention.linear_qkv, all layers"
    digest = subprocess.run(["sha256sum", QKV], capture_output=True, text=True, check=True)
    assert lora.sha256 == digest.stdout.split()[0]
    assert len(scalers.sha256) == 64
    report = inspect_checkpoint(tmp_path / "out", check=True)
    assert report.adapters[0] == f"{QKV.name}: LoRA adapter, {lora.details}"
    shown = nemotron("inspect", "out", cwd=tmp_path).stdout
    assert "lora_qkv_tp1.nemo: LoRA adapter" in shown


def test_another_adapter_is_another_conversion(tmp_path: Path) -> None:
    convert(BASE, tmp_path / "out", Options(Parallel(1, 1), reuse=True, adapters=(QKV,)))
    again = Options(Parallel(1, 1), resume=True, reuse=True, adapters=(QKV,))
    convert(BASE, tmp_path / "out", again)
    for adapters in ((ALL,), (), (QKV, QKV)):
        with pytest.raises(NemotronError, match="made with another source"):
            convert(BASE, tmp_path / "out", Options(Parallel(1, 1), reuse=True, adapters=adapters))


def test_an_adapter_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_adapter(tmp_path / "lora", read_adapter(QKV), read_config(QKV))
    close = Source.require_unchanged

    def touch(self: Source) -> None:
        (folder / "model_weights.ckpt").write_bytes(b"")
        close(self)

    monkeypatch.setattr(Source, "require_unchanged", touch)
    with pytest.raises(NemotronError, match=r"model_weights\.ckpt changed while it was read"):
        convert(BASE, tmp_path / "out", Options(Parallel(1, 1), adapters=(folder,)))
    assert not (tmp_path / "out").exists()


def test_the_plan_names_them(tmp_path: Path) -> None:
    done = nemotron(
        *("convert", "--base", BASE, ALL, "-o", "out", "--tp", 1, "--plan"), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "lora_all_tp2.nemo: rank 8, alpha 8, scale 1, nemo" in " ".join(done.stdout.split())


INSPECTED = {
    "lora_qkv_tp1": "LoRA adapter: rank 8, alpha 16, scale 2, nemo, self_attention.linear_qkv, all "
    "layers",
    "lora_canonical_tp1": "LoRA adapter: rank 8, alpha 8, scale 1, canonical, "
    "self_attention.linear_qkv, all layers",
    "adapter_tp1": "bottleneck adapter",
    "ptuning_tp2": "P-tuning prompt: 10 virtual tokens",
}


@pytest.mark.parametrize("name", INSPECTED)
def test_the_kind_is_in_the_first_line(name: str, tmp_path: Path) -> None:
    done = nemotron("inspect", CUSTOM / f"{name}.nemo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert text.startswith(f"kind {INSPECTED[name]}")


@pytest.mark.parametrize("table", ["stored", "empty", "missing", "one rank"])
def test_the_vectors_of_a_prompt_come_from_its_mlp(table: str, tmp_path: Path) -> None:
    """The stored table is filled by an evaluation, so it may be empty or old."""
    source = CUSTOM / "ptuning_tp2.nemo"
    folder = tmp_path / "in"
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
        expected = np.load(CUSTOM / "ptuning_table.npz")["inference_table"]
    for path in folder.glob("*/*.ckpt"):
        state = torch.load(path)
        (name,) = (name for name in state if name.endswith("inference_table"))
        if table == "empty":
            state[name] = torch.zeros_like(state[name])
        elif table == "missing":
            del state[name]
        torch.save(state, path)
    if table == "one rank":
        shutil.rmtree(folder / "mp_rank_01")
    with Contents.open(folder) as contents:
        if table == "one rank":
            with pytest.raises(NemotronError, match=r"has shape \[32, 32\], but bottleneck is 64"):
                read_prompt_table(contents)
            return
        prompt = read_prompt_table(contents)
    np.testing.assert_allclose(prompt.vectors, expected, rtol=1e-5, atol=1e-6)
    assert prompt.is_stored == (table == "stored")
    report = inspect(folder)
    assert report.adapter is not None
    assert report.adapter.virtual_tokens == 10
    assert ("is not what the MLP computes" in report.adapter.details) == (table != "stored")


def test_a_report_on_a_lora(tmp_path: Path) -> None:
    config = read_config(QKV)
    config["peft"]["lora_tuning"] |= {"layer_selection": [2, 3], "alpha": None}
    tensors = selected(read_adapter(QKV), (1, 2))
    report = inspect(write_adapter(tmp_path / "lora", tensors, config))
    assert (report.convertible, report.unknown_tensors) == (True, {})
    lora = report.adapter
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.scale, lora.layers) == (8, None, 1.0, [1, 2])
    assert lora.details.endswith("no alpha, scale 1, nemo, self_attention.linear_qkv, layers 1-2 "
                                 "of 0-3")  # fmt: skip
    assert lora.base == "/models/base.nemo"


def test_nemo_2_names_its_base(tmp_path: Path) -> None:
    transform = {"_target_": "nemo.collections.llm.peft.lora.LoRA", "dim": 8}
    folder = write_nemo2(tmp_path / "lora", read_adapter(ALL), transform)
    report = inspect(folder)
    assert report.adapter is not None
    assert (report.adapter.base, report.adapter.scale) == ("/models/nemotron4", 4.0)
    with pytest.raises(NemotronError, match=r"convert --base /models/nemotron4 .*lora -o"):
        convert(folder, tmp_path / "out", Options(Parallel(1, 1)))


Change = Callable[[Tensors, dict[str, Any]], object]
GATE = LAYERS + "0.mlp.adapter_layer.lora_unfused_hto4h_adapter.gate_adapter."
FIRST = LAYERS + "0.self_attention.adapter_layer.lora_kqv_adapter."


def tuned(**changes: object) -> Change:
    return lambda _, config: config["peft"]["lora_tuning"].update(changes)


def without(name: str) -> Change:
    return lambda tensors, _: tensors.pop(name)


def added(name: str, *shape: int) -> Change:
    return lambda tensors, _: tensors.update({name: torch.ones(shape)})


REFUSED: dict[str, tuple[Change, str]] = {
    "another number of layers": (
        lambda _, config: config.update(num_layers=5),
        "num_layers is 5, the base model has 4.*trained on",
    ),
    "another hidden size": (
        lambda _, config: config.update(hidden_size=128, kv_channels=16),
        "hidden_size is 128, the base model has 256",
    ),
    "other groups": (
        lambda _, config: config.update(num_query_groups=4),
        "num_kv_heads is 4, the base model has 8",
    ),
    "A without its B": (without(FIRST + "linear_out.weight"), "layer 0 has only one of"),
    "a missing layer": (
        lambda tensors, _: [tensors.pop(FIRST + f"linear_{side}.weight") for side in ("in", "out")],
        "no self_attention.*lora_kqv_adapter in layers 0.*copy",
    ),
    "more layers than selected": (tuned(layer_selection=[1, 2]), "in layers 2-3, which are not"),
    "a missing module": (tuned(target_modules=["all"]), "no factors for attention_dense, mlp_fc1"),
    "another rank": (tuned(adapter_dim=4), "has rank 8, the settings say 4"),
    "B of another width": (
        added(FIRST + "linear_out.weight", 500, 8),
        r"layer 0 has shape \[500, 8\], the base model asks for \[512, 8\]",
    ),
    "tied layers": (tuned(weight_tying=True), "share their factors"),
    "an alpha that is none": (tuned(alpha="${x}"), r"alpha: \$\{x\} is no positive number"),
    "a stretched base": (
        lambda _, config: config.update(rope_scaling={"type": "linear"}),
        "rope_scaling: a dict changes the rotary embedding",
    ),
    "a rank that is none": (tuned(adapter_dim="many"), "adapter_dim: many is no rank"),
    "DoRA": (
        added(LAYERS + "0.self_attention.linear_qkv.adapter.weight_magnitude", 512),
        r"cannot be merged: .*weight_magnitude \(F32 \[512\]\)",
    ),
    "a gate": (
        added(GATE + "linear_in.weight", 8, 256),
        "cannot be merged: .*gate_adapter",
    ),
    "NaN": (
        added(FIRST + "linear_in.weight", 8, 256),
        "holds NaN or Inf",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged(name: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    tensors, config = read_adapter(QKV), read_config(QKV)
    change(tensors, config)
    if name == "NaN":
        tensors[FIRST + "linear_in.weight"][3, 3] = torch.nan
    folder = write_adapter(tmp_path / "lora", tensors, config)
    with pytest.raises(NemotronError, match=message) as caught:
        convert(BASE, tmp_path / "out", Options(Parallel(1, 1), adapters=(folder,)))
    assert "lora" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_rank(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", read_adapter(ALL), read_config(ALL), tp=2, pp=2)
    shutil.rmtree(folder / "tp_rank_01_pp_rank_001")
    with pytest.raises(NemotronError, match="TP rank 1, pipeline stage 1 is missing"):
        convert(BASE, tmp_path / "out", Options(Parallel(1, 1), adapters=(folder,)))


@pytest.mark.parametrize(
    ("base", "adapter", "message"),
    [
        (BASE, BASE, "this is a base model, which is whole and is not merged.*without --base"),
        (QKV, ALL, "this is a LoRA adapter, not a whole model.*--base /models/base.nemo"),
        (BASE, CUSTOM / "adapter_tp1.nemo", "a bottleneck adapter.*cannot be merged"),
        (OTHER_BASE, QKV, "hidden_size is 256, the base model has 128"),
    ],
)
def test_the_wrong_kind(base: Path, adapter: Path, message: str, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=message):
        convert(base, tmp_path / "out", Options(Parallel(1, 1), adapters=(adapter,)))


def test_two_files_need_a_base(tmp_path: Path) -> None:
    done = nemotron("convert", QKV, ALL, "-o", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "2 files and no base model" in done.stderr
    assert "--base BASE.nemo" in done.stderr


def test_a_compressed_lora_and_an_output_inside_of_it(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", read_adapter(QKV), read_config(QKV))
    path = tar(folder, tmp_path / "lora.nemo", "w:gz")
    expected = convert(BASE, tmp_path / "expected", Options(Parallel(2, 1), adapters=(QKV,)))
    given = convert(BASE, tmp_path / "out", Options(Parallel(2, 1), adapters=(path,)))
    assert given.files == expected.files
    with pytest.raises(NemotronError, match="inside the input"):
        convert(BASE, folder / "out", Options(Parallel(2, 1), adapters=(folder,)))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (BASE, "this is a base model, not a checkpoint.*nemotron convert .*tiny_nemotron.nemo -o"),
        (QKV, "this is a LoRA adapter, not a whole model.*convert --base /models/base.nemo"),
        (CUSTOM / "ptuning_tp2.nemo", "this is a P-tuning prompt, not a whole model.*--base"),
    ],
)
def test_a_nemo_is_no_checkpoint(path: Path, message: str, tmp_path: Path) -> None:
    """So `build` and `verify` say what it is and what to run."""
    with pytest.raises(NemotronError, match=message):
        Checkpoint.open(path)
