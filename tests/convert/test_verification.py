"""`nemotron verify` accepts right checkpoints and names each seeded fault."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Dtype, Precision
from nemotron_convert.verification.report import Verification
from nemotron_convert.verification.verifier import verify
from nemotron_core.errors import NemotronError
from tests.convert.nemo import GOLDEN, unpack
from tests.convert.nemo import NEMO as RANDOM
from tests.convert.test_mpi import mpirun
from tests.tiny_nemotron.nemo_file import NEMO

Edit = Callable[[dict[str, torch.Tensor]], object]
LAYER_1 = "transformer.layers.1."


@pytest.fixture(scope="module")
def pipelined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified") / "tp4pp2"
    convert(NEMO, folder, Options(Parallel(4, 2)))
    return folder


def edit_rank(folder: Path, rank: int, edit: Edit) -> None:
    path = folder / f"rank{rank}.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def edit_config(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def swap_ranks(folder: Path, names: tuple[str, ...] = ("",)) -> None:
    """Exchange ranks 2 and 5, or only the tensors whose names contain one of `names`."""
    first, second = (load_file(folder / f"rank{rank}.safetensors") for rank in (2, 5))
    for name in first:
        if any(part in name for part in names):
            first[name], second[name] = second[name], first[name]
    save_file(first, folder / "rank2.safetensors")
    save_file(second, folder / "rank5.safetensors")


def transposed(name: str, rank: int = 3) -> Callable[[Path], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        shape = tensors[name].shape
        tensors[name] = tensors[name].T.contiguous().reshape(shape)

    return lambda folder: edit_rank(folder, rank, edit)


def swap_keys_and_values(tensors: dict[str, torch.Tensor]) -> None:
    name = LAYER_1 + "attention.qkv.weight"
    kv_rows = 16  # TP 8: one KV head on each rank
    query, key, value = tensors[name].split((len(tensors[name]) - 2 * kv_rows, kv_rows, kv_rows))
    tensors[name] = torch.cat((query, value, key))


def scaled(name: str, factor: float) -> Edit:
    return lambda tensors: tensors.update({name: tensors[name] * factor})


def on_every_rank(edit: Edit) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for rank in range(8):
            edit_rank(folder, rank, edit)

    return damage


def without_the_one(tensors: dict[str, torch.Tensor]) -> None:
    """Replace gamma by the source's stored value, which is 1 less."""
    tensors[NORM] = SOURCE_GAMMA


NORM = LAYER_1 + "post_layernorm.weight"
SOURCE_GAMMA = torch.empty(0)  # set by the fixture below


@pytest.fixture(scope="module", autouse=True)
def source_gamma(tmp_path_factory: pytest.TempPathFactory) -> None:
    global SOURCE_GAMMA  # noqa: PLW0603 - damage functions have no other way to it
    from nemotron_convert.source.nemo import Source

    with Source.open(NEMO) as source:
        array = source.tensors["model.decoder.layers.mlp.linear_fc1.layer_norm_weight"]
        SOURCE_GAMMA = torch.from_numpy(array.read_layer(1)[0]).view(torch.bfloat16)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "ranks swapped": (
        swap_ranks,
        r"^rank 2: transformer\.vocab_embedding\.weight: .*this is the shard of TP rank 5",
    ),
    "one tensor of two ranks swapped": (
        lambda f: swap_ranks(f, (LAYER_1 + "mlp.fc.weight",)),
        r"^layer 1, rank 2: transformer\.layers\.1\.mlp\.fc\.weight: .*shard of TP rank 5",
    ),
    "column shards swapped": (
        lambda f: swap_ranks(f, (LAYER_1 + "mlp.proj.weight",)),
        r"^layer 1, rank 2: transformer\.layers\.1\.mlp\.proj\.weight: relative error 1\.",
    ),
    "attention projection transposed": (
        transposed(LAYER_1 + "attention.dense.weight"),
        r"^layer 1, rank 3: transformer\.layers\.1\.attention\.dense\.weight",
    ),
    "MLP transposed": (
        transposed(LAYER_1 + "mlp.fc.weight"),
        r"^layer 1, rank 3: transformer\.layers\.1\.mlp\.fc\.weight",
    ),
    "head transposed": (transposed("lm_head.weight"), r"^rank 3: lm_head\.weight"),
    "gamma without its one": (
        on_every_rank(without_the_one),
        r"^layer 1, rank 0: transformer\.layers\.1\.post_layernorm\.weight: .*without its 1",
    ),
    "gamma without its one on a rank": (
        lambda f: edit_rank(f, 6, without_the_one),
        r"^layer 1, rank 6: transformer\.layers\.1\.post_layernorm\.weight: .*without its 1",
    ),
    "K and V swapped": (
        on_every_rank(swap_keys_and_values),
        r"^layer 1, rank 0: .*attention\.qkv\.weight \(K\): .*K and V are swapped",
    ),
    "one weight wrong": (
        lambda f: edit_rank(f, 4, scaled(LAYER_1 + "mlp.proj.weight", 1.02)),
        r"^layer 1, rank 4: transformer\.layers\.1\.mlp\.proj\.weight: relative error 0\.02",
    ),
    "bias lost": (
        on_every_rank(scaled("transformer.ln_f.bias", 0)),
        r"^rank 0: transformer\.ln_f\.weight",
    ),
    "rotary share": (
        lambda f: edit_config(f, rotary_pct=1.0),
        r"^config\.json: rotary_pct: .*1\.0, not 0\.5",
    ),
    "QK scaling": (
        lambda f: edit_config(f, apply_query_key_layer_scaling=True),
        r"^config\.json: apply_query_key_layer_scaling: .*True, not False",
    ),
    "NaN": (
        lambda f: edit_rank(f, 1, scaled(LAYER_1 + "attention.qkv.weight", float("nan"))),
        r"^layer 1, rank 1: .*attention\.qkv\.weight \(Q\): relative error inf",
    ),
}


def verify_damaged(
    checkpoint: Path, damage: Callable[[Path], object], tmp_path: Path
) -> Verification:
    folder = shutil.copytree(checkpoint, tmp_path / "damaged")
    damage(folder)
    return verify(folder, NEMO)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_named(fault: str, checkpoint_tp8: Path, tmp_path: Path) -> None:
    damage, message = FAULTS[fault]
    verification = verify_damaged(checkpoint_tp8, damage, tmp_path)
    assert not verification.is_safe
    first = verification.faults[0]
    assert re.search(message, str(first)), first
    assert verification.verdict.startswith(f"NOT safe to build: first at {first}; ")
    # A wrong setting also makes the attention compute something else.
    if first.where.startswith("config.json"):
        assert any("attention: " in str(fault) for fault in verification.faults[1:])


def swap_fp8_keys_and_values(tensors: dict[str, torch.Tensor]) -> None:
    name = LAYER_1 + "attention.qkv.weight"
    tensors[name] = tensors[name].view(torch.uint8)
    swap_keys_and_values(tensors)
    tensors[name] = tensors[name].view(torch.float8_e4m3fn)


FP8_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weight scale everywhere": (
        on_every_rank(scaled(LAYER_1 + "mlp.fc.weights_scaling_factor", 1.5)),
        r"^layer 1, rank 0: transformer\.layers\.1\.mlp\.fc\.weight: relative error 0\.(5|499)",
    ),
    "weight scale a little wrong on a rank": (
        lambda f: edit_rank(f, 7, scaled(LAYER_1 + "mlp.fc.weights_scaling_factor", 1.01)),
        r"^layer 1, rank 7: transformer\.layers\.1\.mlp\.fc\.weights_scaling_factor: .*, not ",
    ),
    "input scale too small": (
        on_every_rank(scaled(LAYER_1 + "attention.qkv.activation_scaling_factor", 1 / 16)),
        r"^layer 1, rank 0: .*attention\.qkv\.weight \(Q\)",
    ),
    "ranks swapped": (swap_ranks, "shard of TP rank 5"),
    "K and V swapped": (
        on_every_rank(swap_fp8_keys_and_values),
        "K and V are swapped",
    ),
}


@pytest.mark.parametrize("fault", FP8_FAULTS)
def test_a_seeded_fault_in_fp8(fault: str, checkpoint_fp8: Path, tmp_path: Path) -> None:
    damage, message = FP8_FAULTS[fault]
    verification = verify_damaged(checkpoint_fp8, damage, tmp_path)
    assert not verification.is_safe
    assert re.search(message, str(verification.faults[0])), verification.faults[0]


@pytest.mark.parametrize("layout", ["tp8", "tp4pp2", "fp8"])
def test_a_right_checkpoint_is_safe(
    layout: str, checkpoint_tp8: Path, checkpoint_fp8: Path, pipelined: Path
) -> None:
    folder = {"tp8": checkpoint_tp8, "tp4pp2": pipelined, "fp8": checkpoint_fp8}[layout]
    verification = verify(folder, NEMO)
    assert verification.faults == []
    assert len(verification.layers) == 4
    assert verification.tokens > 100
    worst, logits, top1 = (0.08, 0.1, 0.9) if layout == "fp8" else (1e-4, 1e-4, 1.0)
    assert max(row.worst for row in verification.layers) < worst
    assert max(row.hidden for row in verification.layers) < logits
    assert verification.logits < logits
    assert verification.top1 >= top1
    assert 0 <= verification.mean_kl < (0.05 if layout == "fp8" else 1e-6)
    assert verification.verdict.startswith("safe to build: 4 layers")


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (16, 1), (2, 3)])
@pytest.mark.parametrize("dtype", list(Dtype))
def test_every_split_of_a_random_model(tp: int, pp: int, dtype: Dtype, tmp_path: Path) -> None:
    convert(RANDOM, tmp_path / "out", Options(Parallel(tp, pp), precision=Precision(dtype)))
    ids = GOLDEN / "calibration_ids.json"
    assert verify(tmp_path / "out", RANDOM, ids=ids).faults == []


def json_report(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    fields = json.loads(done.stdout)
    assert isinstance(fields, dict)
    return fields


@pytest.mark.parametrize("layout", ["tp8", "tp4pp2", "fp8"])
def test_under_mpirun(
    layout: str, checkpoint_tp8: Path, checkpoint_fp8: Path, pipelined: Path
) -> None:
    """Eight processes, one for each rank, report what one process reports."""
    folder = {"tp8": checkpoint_tp8, "tp4pp2": pipelined, "fp8": checkpoint_fp8}[layout]
    done = mpirun(8, "verify", str(folder), "--against", str(NEMO), "--json")
    assert done.returncode == 0, done.stderr
    fields = json_report(done)
    assert fields["safe"] is True
    alone = verify(folder, NEMO)
    assert fields["top1"] == pytest.approx(alone.top1, abs=0.03)
    assert fields["logits"] == pytest.approx(alone.logits, rel=0.3, abs=1e-5)
    assert fields["mean_kl"] == pytest.approx(alone.mean_kl, rel=0.5, abs=1e-6)


def test_a_fault_under_mpirun(pipelined: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pipelined, tmp_path / "damaged")
    # Layer 3 is the second of the second stage, whose ranks are 4 to 7.
    edit_rank(folder, 6, scaled("transformer.layers.1.mlp.proj.weight", 2))
    done = mpirun(8, "verify", str(folder), "--against", str(NEMO))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(
        "NOT safe to build: first at layer 3, rank 6: transformer.layers.1.mlp.proj.weight: "
    )


def test_another_model_is_refused(checkpoint_tp8: Path) -> None:
    with pytest.raises(NemotronError, match=r"hidden_size is 256, the source has 128"):
        verify(checkpoint_tp8, RANDOM)


def test_a_shard_of_another_shape_is_refused(checkpoint_tp8: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint_tp8, tmp_path / "damaged")
    name = LAYER_1 + "attention.dense.weight"
    edit_rank(folder, 3, lambda tensors: tensors.update({name: tensors[name].T}))
    with pytest.raises(NemotronError, match=r"attention\.dense\.weight should be BF16 .*rank3"):
        verify(folder, NEMO)


def test_the_command_ends_with_one_line(pipelined: Path) -> None:
    command = [str(Path(sys.executable).with_name("nemotron")), "verify", str(pipelined)]
    done = subprocess.run(
        [*command, "--against", str(NEMO)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.strip().splitlines()[-1] == (
        "safe to build: 4 layers at TP=4 PP=2 in bf16 compute what the source computes"
    )
    done = subprocess.run(
        [*command, "--against", str(unpack(pipelined.parent / "other"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
