"""Conversions of a model with a P-tuning: its vectors beside the checkpoint, and refusals."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from nemotron_convert.convert import Options, convert, convert_to_peft
from nemotron_convert.inspect import inspect_checkpoint
from nemotron_convert.shards import Parallel
from nemotron_convert.source.prompt_table import PREFIX
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.layout import Dtype, Format, Precision
from nemotron_convert.target.virtual_tokens import FILE_NAME
from nemotron_convert.verification.verifier import verify
from nemotron_core.errors import NemotronError
from tests.convert.adapters import ALL, BASE, CUSTOM, LAYERS, QKV
from tests.convert.nemo import NEMO as OTHER_BASE
from tests.convert.test_adapters import nemotron
from tests.convert.test_peft import PROMPT
from tests.reward_fixtures import REWARD
from tests.tiny_nemotron.reference import load_hf_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

SOURCE = CUSTOM / "ptuning_tp2.nemo"
VECTORS = np.load(CUSTOM / "ptuning_table.npz")["inference_table"]
"""[10, 256], computed apart from this project."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The P-tuning as a folder."""
    with tarfile.open(SOURCE) as archive:
        archive.extractall(tmp_path / "prompt", filter="data")
    return tmp_path / "prompt"


def change(folder: Path, name: str, factor: float) -> None:
    """Multiply a tensor in the files of all ranks."""
    for path in folder.glob("*/*.ckpt"):
        state = torch.load(path)
        state[PREFIX + name] *= factor
        torch.save(state, path)


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "model_config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def options(*adapters: Path, tp: int = 1, pp: int = 1, **more: Any) -> Options:
    return Options(Parallel(tp, pp), adapters=adapters, **more)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (8, 1), (2, 2)])
def test_the_vectors_stand_beside_the_base(tp: int, pp: int, tmp_path: Path) -> None:
    base = convert(BASE, tmp_path / "base", options(tp=tp, pp=pp))
    given = convert(BASE, tmp_path / "out", options(SOURCE, tp=tp, pp=pp))
    assert given.files.keys() - base.files.keys() == {FILE_NAME}
    assert base.files.items() <= given.files.items()
    assert given.content_hash != base.content_hash
    assert (given.virtual_tokens, given.adapters[0].details) == (10, "10 virtual tokens")
    vectors = Checkpoint.open(tmp_path / "out").virtual_tokens()
    assert vectors is not None
    np.testing.assert_allclose(vectors, VECTORS, rtol=1e-5, atol=1e-6)
    assert Checkpoint.open(tmp_path / "base").virtual_tokens() is None
    (adapter,) = inspect_checkpoint(tmp_path / "out", check=True).adapters
    assert adapter == "ptuning_tp2.nemo: P-tuning prompt, 10 virtual tokens"


def test_the_mlp_decides_and_not_the_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(BASE, tmp_path / "right", options(SOURCE))
    assert capsys.readouterr().err == ""
    change(folder, "inference_table", 0.5)
    convert(BASE, tmp_path / "out", options(folder))
    assert "note: the stored inference_table is not what the MLP" in capsys.readouterr().err
    right, given = (load_file(tmp_path / name / FILE_NAME) for name in ("right", "out"))
    assert np.array_equal(right["vectors"], given["vectors"])


def test_pipeline_stages(folder: Path, tmp_path: Path) -> None:
    """Only the first stage has the tensors; the others save nothing."""
    for rank in range(2):
        shutil.move(folder / f"mp_rank_0{rank}", folder / f"tp_rank_0{rank}_pp_rank_000")
        later = folder / f"tp_rank_0{rank}_pp_rank_001"
        later.mkdir()
        torch.save({}, later / "model_weights.ckpt")
    given = convert(BASE, tmp_path / "out", options(folder))
    expected = convert(BASE, tmp_path / "expected", options(SOURCE))
    assert given.files == expected.files


def test_with_a_lora(tmp_path: Path) -> None:
    """In any order: the P-tuning changes no weight."""
    merged = convert(BASE, tmp_path / "merged", options(ALL, tp=2))
    for adapters in ((ALL, SOURCE), (SOURCE, ALL)):
        name = adapters[0].stem
        given = convert(BASE, tmp_path / name, options(*adapters, tp=2))
        assert merged.files.items() <= given.files.items()
        assert verify(tmp_path / name, BASE, adapters=adapters).is_safe


def test_verify_computes_them_itself(folder: Path, tmp_path: Path) -> None:
    convert(BASE, tmp_path / "out", options(SOURCE, tp=2, pp=2))
    report = verify(tmp_path / "out", BASE, adapters=[SOURCE])
    assert report.is_safe
    assert report.tokens == verify_tokens(tmp_path) + 4 * 10  # before each of four texts
    path = tmp_path / "out" / FILE_NAME
    vectors = load_file(path)["vectors"]
    save_file({"vectors": np.roll(vectors, 1, 0)}, path)
    faults = [str(fault) for fault in verify(tmp_path / "out", BASE, adapters=[SOURCE]).faults]
    assert any(fault.startswith(FILE_NAME) and "MLP" in fault for fault in faults)
    save_file({"vectors": vectors[:9]}, path)
    with pytest.raises(NemotronError, match=r"float32 \[9, 256\], not float32 \[10, 256\]"):
        verify(tmp_path / "out", BASE, adapters=[SOURCE])
    path.unlink()
    with pytest.raises(NemotronError, match=r"cannot be read.*virtual_tokens.*convert again"):
        inspect_checkpoint(tmp_path / "out", check=False)


def verify_tokens(tmp_path: Path) -> int:
    convert(BASE, tmp_path / "base", options(tp=2))
    return verify(tmp_path / "base", BASE).tokens


def test_a_checkpoint_without_them_is_red(tmp_path: Path) -> None:
    convert(BASE, tmp_path / "base", options(tp=2))
    faults = [str(one) for one in verify(tmp_path / "base", BASE, adapters=[SOURCE]).faults]
    assert any("0 virtual tokens, not 10" in fault for fault in faults)
    convert(BASE, tmp_path / "out", options(SOURCE, tp=2))
    faults = [str(one) for one in verify(tmp_path / "out", BASE).faults]
    assert any("10 virtual tokens, not 0" in fault for fault in faults)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"format": Format.HF}, "no place for the virtual tokens.*--format hf.*--format peft"),
        ({"precision": Precision(Dtype.FP8)}, "calibration sees tokens.*--dtype fp8.*in BF16"),
    ],
)
def test_outputs_without_a_place(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=message):
        convert(BASE, tmp_path / "out", options(SOURCE, **more))
    assert not list(tmp_path.glob("out*"))


def test_other_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match="hidden_size is 256, the base model has 128"):
        convert(OTHER_BASE, tmp_path / "out", options(SOURCE))
    with pytest.raises(NemotronError, match="2 P-tunings: a model has the virtual tokens of one"):
        convert(BASE, tmp_path / "out", options(SOURCE, folder))
    settings(folder, num_layers=1)
    with pytest.raises(NemotronError, match="a reward model has no virtual tokens"):
        convert(REWARD, tmp_path / "out", options(folder))
    with pytest.raises(NemotronError, match=r"not a whole model.*convert it with its base model"):
        convert(SOURCE, tmp_path / "out", options())


def test_numbers_that_are_none(folder: Path, tmp_path: Path) -> None:
    change(folder, "second.bias", float("nan"))
    with pytest.raises(NemotronError, match=r"second\.bias holds NaN or Inf"):
        convert(BASE, tmp_path / "out", options(folder))


def test_other_tensors_beside_them(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*/*.ckpt"):
        state = torch.load(path)
        state[LAYERS + "0.mlp.adapter_layer.mlp_infused_adapter.scalers"] = torch.ones(512)
        torch.save(state, path)
    with pytest.raises(NemotronError, match="a P-tuning with other adapters in the same file"):
        convert(BASE, tmp_path / "out", options(folder))


def test_peft_puts_the_same_vectors_before_the_prompt(tmp_path: Path) -> None:
    manifest = convert_to_peft(SOURCE, tmp_path / "peft", BASE)
    assert (manifest.virtual_tokens, manifest.dtype) == (10, "f32")
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (written["peft_type"], written["num_virtual_tokens"]) == ("PROMPT_TUNING", 10)
    model = load_hf_model()
    with torch.inference_mode():
        words = model.get_input_embeddings()(torch.tensor(PROMPT))
        states = torch.cat([torch.from_numpy(VECTORS), words])[None]
        expected = model(inputs_embeds=states).logits[0, -1]
        tuned = PeftModel.from_pretrained(model, tmp_path / "peft").eval()
        logits = tuned(
            input_ids=torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT))
        ).logits[0, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)


def test_the_commands(tmp_path: Path) -> None:
    done = nemotron(*("convert", "--base", BASE, SOURCE, QKV, "-o", "out", "--tp", 2), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "with ptuning_tp2.nemo, lora_qkv_tp1.nemo" in done.stdout
    done = nemotron(
        *("verify", "out", "--base", BASE, "--against", SOURCE, "--against", QKV), cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    done = nemotron("convert", SOURCE, "-o", "peft", "--format", "peft", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "peft: peft f32, 10 virtual tokens\n")
    done = nemotron("build", "out", "-o", "engine", "--profile", "h100-fp8-tp8-vllm", cwd=tmp_path)
    assert done.returncode == 1
    assert "which the lane vllm does not put in front of prompts" in done.stderr
    assert "lane cpu" in done.stderr
