"""A reward model: its head, whatever its layout and type, and what a conversion makes of it."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoModelForSequenceClassification

from nemotron_convert.convert import Options, convert
from nemotron_convert.inspect import inspect, inspect_checkpoint
from nemotron_convert.shards import Parallel
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import Format
from nemotron_convert.target.manifest import Manifest, changed_files, read_manifest
from nemotron_convert.verification.verifier import verify
from nemotron_core.errors import NemotronError
from nemotron_core.reward import ATTRIBUTES, HEAD_NAME, WEIGHTS, RewardHead
from tests.convert.nemo import GOLDEN, add_settings
from tests.convert.nemo import WEIGHTS as FOLDER
from tests.convert.test_legacy import legacy

REWARD = GOLDEN / "reward" / "reward_1layer.nemo"
EXPECTED = json.loads((GOLDEN / "reward" / "expected.json").read_text())
HEAD = "model.rm_head.weight"
BIAS = "model.rm_head.bias"


def unpack(folder: Path) -> Path:
    with tarfile.open(REWARD) as tar:
        tar.extractall(folder, filter="data")
    return folder


def store(folder: Path, name: str, array: NDArray[Any], dtype: str) -> None:
    """Store an array as one chunk, in place of what was there."""
    path = folder / FOLDER / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    rest = {"compressor": None, "filters": None, "fill_value": None, "order": "C"}
    meta = {"zarr_format": 2, "shape": array.shape, "chunks": array.shape, "dtype": dtype}
    (path / ".zarray").write_text(json.dumps(meta | rest))
    (path / ".".join("0" * array.ndim)).write_bytes(array.tobytes())


def stored(name: str, chunk: str = "0") -> NDArray[np.float32]:
    """Return a chunk of the golden model, read with tarfile and NumPy only."""
    with tarfile.open(REWARD) as tar:
        file = tar.extractfile(f"./{FOLDER}/{name}/{chunk}")
        assert file is not None
        return np.frombuffer(file.read(), ml_dtypes.bfloat16).astype(np.float32)


def stored_head() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    columns = [stored(HEAD, f"0.{i}").reshape(9, 32) for i in range(8)]
    return np.concatenate(columns, 1), stored(BIAS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward") / "tp4"
    manifest = convert(REWARD, folder, Options(Parallel(4, 1)))
    assert changed_files(folder, manifest) == []
    return folder


def test_the_head_is_beside_a_checkpoint_with_exact_norms(checkpoint: Path, tmp_path: Path) -> None:
    weight, bias = stored_head()
    with safe_open(checkpoint / HEAD_NAME, "numpy") as file:
        names = file.metadata()
        assert json.loads(names["attributes"]) == EXPECTED["attributes"]
        assert json.loads(names["weights"]) == EXPECTED["weights"]
        assert sorted(file.keys()) == ["bias", "weight"]
        assert file.get_tensor("weight").dtype == np.float32
        assert (file.get_tensor("weight") == weight).all()
        assert (file.get_tensor("bias") == bias).all()
    assert json.loads((checkpoint / "config.json").read_text())["kind"] == "reward"
    manifest = read_manifest(checkpoint)
    assert manifest.kind == "reward"
    base = _without_head(unpack(tmp_path / "base"))
    files = convert(base, tmp_path / "out", Options(Parallel(4, 1))).files
    assert "kind" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert set(manifest.files) == {*files, HEAD_NAME}
    text, reward = (Checkpoint.open(folder) for folder in (tmp_path / "out", checkpoint))
    for rank, tensors in enumerate(reward.ranks):
        for name in tensors:
            held, rounded = reward.read(rank, name), text.read(rank, name)
            is_norm = name.endswith(("layernorm.weight", "ln_f.weight"))
            assert held.dtype == (np.float32 if is_norm else ml_dtypes.bfloat16)
            assert (held.astype(ml_dtypes.bfloat16) == rounded).all()
    gamma = stored("model.decoder.final_layernorm.weight")
    assert (reward.tensor("transformer.ln_f.weight") == gamma + np.float32(1)).all()
    report = inspect_checkpoint(checkpoint, check=True)
    assert (report.kind, inspect_checkpoint(tmp_path / "out", check=True).kind) == (
        "reward",
        "text",
    )


def _without_head(folder: Path) -> Path:
    for name in (HEAD, BIAS):
        shutil.rmtree(folder / FOLDER / name)
    path = folder / "model_config.yaml"
    kept, _, _ = path.read_text().partition("reward_model_type")
    path.write_text(kept)
    return folder


def test_a_head_in_f32_is_not_rounded(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    numbers = np.random.default_rng(0).standard_normal((10, 256)).astype(np.float32)
    assert (numbers.astype(ml_dtypes.bfloat16).astype(np.float32) != numbers).any()
    store(folder, HEAD, numbers[:9], "<f4")
    store(folder, BIAS, numbers[9, :9], "<f4")
    convert(folder, tmp_path / "out", Options(Parallel(1, 1), strict=True))
    head = RewardHead.read(tmp_path / "out")
    assert (head.weight == numbers[:9]).all()
    assert (head.bias == numbers[9, :9]).all()


def test_a_head_that_ranks_hold_in_columns(tmp_path: Path) -> None:
    """As `torch.save` of four ranks: columns are split, the bias is on the last stage's ranks."""
    folder = legacy(tmp_path / "in", 2, 2)
    numbers = torch.from_numpy(np.random.default_rng(1).standard_normal((9, 129)).astype("f4"))
    for rank in range(2):
        path = folder / f"tp_rank_{rank:02d}_pp_rank_001" / "model_weights.ckpt"
        state = torch.load(path, weights_only=False)
        state[HEAD] = numbers[:, :128].chunk(2, 1)[rank].clone()
        state[BIAS] = numbers[:, 128].clone()
        torch.save(state, path)
    add_settings(folder, reward_model_type="regression")
    convert(folder, tmp_path / "out", Options(Parallel(2, 1)))
    head = RewardHead.read(tmp_path / "out")
    assert (head.weight == numbers[:, :128].numpy()).all()
    assert (head.bias == numbers[:, 128].numpy()).all()


def test_transformers_and_the_bias_give_the_expected_scores(tmp_path: Path) -> None:
    manifest = convert(REWARD, tmp_path / "hf", Options(Parallel(1, 1), Format.HF))
    assert changed_files(tmp_path / "hf", manifest) == []
    assert manifest.kind == "reward"
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values())
    assert type(model).__name__ == "NemotronForSequenceClassification"
    assert [model.config.id2label[i] for i in range(9)] == EXPECTED["attributes"]
    head = RewardHead.read(tmp_path / "hf")
    for case in EXPECTED["cases"]:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([case["token_ids"]])).logits[0].numpy()
        scores = logits + head.bias
        assert np.abs(scores - np.array(case["scores"])).max() < 1e-5
        assert abs(scores @ head.weights - case["reward"]) < 1e-5


def test_inspect_names_the_kind_and_the_attributes() -> None:
    report = inspect(REWARD)
    assert (report.kind, report.convertible) == ("reward model", True)
    assert report.attributes == EXPECTED["attributes"]
    assert {HEAD, BIAS} < {tensor.name for tensor in report.tensors}
    assert report.unknown_tensors == {}


Edit = Callable[[Path], object]


def regression(**values: object) -> Edit:
    return lambda folder: add_settings(folder, regression=values)


def head_of(shape: tuple[int, ...], value: float = 0.0) -> Edit:
    return lambda folder: store(folder, HEAD, np.full(shape, value, "f4"), "<f4")


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (regression(num_attributes=5), r"regression.num_attributes: 5 has other attributes"),
        (regression(merge_attributes=True), "merge_attributes: True gives one number"),
        (lambda f: add_settings(f, use_avg_pool=True), "use_avg_pool: True scores the mean"),
        (lambda f: add_settings(f, output_sequence=True), "output_sequence: True"),
        (
            lambda f: add_settings(f, reward_model_type="binary_ranking"),
            "reward_model_type: binary_ranking is another kind",
        ),
        (
            lambda f: add_settings(f, reward_standardization={"enable": True, "mean": 1}),
            "reward_standardization.enable: True moves",
        ),
        (head_of((9, 128)), r"rm_head.weight has shape \[9, 128\], \[9, 256\] is expected"),
        (head_of((1, 256)), r"shape \[1, 256\].*regression of 9 attributes"),
        (head_of((9, 256), np.nan), "rm_head.weight holds NaN or Inf"),
        (lambda f: shutil.rmtree(f / FOLDER / BIAS), "rm_head.bias is missing"),
    ],
)
def test_another_kind_of_head_is_refused_by_name(edit: Edit, error: str, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    edit(folder)
    with pytest.raises(NemotronError, match=error):
        convert(folder, tmp_path / "out", Options(Parallel(1, 1)))
    assert not (tmp_path / "out").exists()


def test_verify_accepts_it_and_names_what_is_wrong(checkpoint: Path, tmp_path: Path) -> None:
    verification = verify(checkpoint, REWARD)
    assert verification.is_safe, verification.verdict
    assert verification.scores is not None
    assert verification.scores < 1e-5
    for name, (edit, fault) in _SEEDED.items():
        folder = shutil.copytree(checkpoint, tmp_path / name)
        edit(folder)
        verification = verify(folder, REWARD)
        assert not verification.is_safe, name
        assert fault in str(verification.faults[0]), name
    folder = shutil.copytree(checkpoint, tmp_path / "kind")
    _as_text(folder)
    with pytest.raises(NemotronError, match=r"input_layernorm\.weight should be BF16 .*, is F32"):
        verify(folder, REWARD)
    base = _without_head(unpack(tmp_path / "base"))
    convert(base, tmp_path / "text", Options(Parallel(1, 1)))
    faults = verify(tmp_path / "text", REWARD).faults
    assert "config.json: kind" in str(faults[0])


def _edit_head(edit: Callable[[NDArray[np.float32], NDArray[np.float32]], object]) -> Edit:
    def edit_folder(folder: Path) -> None:
        head = RewardHead.read(folder)
        edit(head.weight, head.bias)
        head.write(folder)

    return edit_folder


def _swap_rows(weight: NDArray[np.float32], _bias: NDArray[np.float32]) -> None:
    weight[[4, 5]] = weight[[5, 4]]


def _no_bias(_weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    bias[:] = 0


def _other_weights(folder: Path) -> None:
    head = RewardHead.read(folder)
    names = {"attributes": json.dumps(ATTRIBUTES), "weights": json.dumps([*WEIGHTS[:8], 0.33])}
    save_file({"weight": head.weight, "bias": head.bias}, folder / HEAD_NAME, names)


def _as_text(folder: Path) -> None:
    for name in ("config.json", "manifest.json"):
        path = folder / name
        content = json.loads(path.read_text())
        content["kind"] = None if name == "config.json" else "text"
        path.write_text(json.dumps(content))


_SEEDED: dict[str, tuple[Edit, str]] = {
    "rows": (_edit_head(_swap_rows), f"{HEAD_NAME}: weight"),
    "bias": (_edit_head(_no_bias), f"{HEAD_NAME}: bias"),
    "weights": (_other_weights, f"{HEAD_NAME}: weights: relative error inf (others than"),
}


def test_a_checkpoint_says_its_kind_once(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "out")
    manifest = read_manifest(folder)
    Manifest(**(manifest.model_dump() | {"kind": "text"})).write(folder)
    with pytest.raises(NemotronError, match=r"config.json and manifest.json name different kinds"):
        verify(folder, REWARD)
