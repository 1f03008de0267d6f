"""What is not understood: named by `inspect`, left out by hand, and never silently by `verify`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_convert.convert import Options, convert
from nemotron_convert.inspect import inspect
from nemotron_convert.shards import Parallel
from nemotron_convert.target.manifest import read_manifest
from nemotron_convert.verification.verifier import verify
from nemotron_core.errors import NemotronError
from tests.convert.nemo import NEMO, add_array, add_settings, unpack
from tests.convert.test_legacy import legacy

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
BIAS = "model.decoder.layers.self_attention.linear_qkv.bias"
MEDUSA = "model.medusa.0.weight"
TP2 = Parallel(2, 1)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    folder = unpack(tmp_path / "in")
    add_array(folder, BIAS, (4, 256))
    add_array(folder, MEDUSA, (3, 128))
    return folder


def test_inspect_shows_what_convert_refuses(foreign: Path) -> None:
    add_settings(foreign, headscale=True, my_own=3)
    report = inspect(foreign)
    assert report.kind == "base model"
    assert not report.convertible
    assert report.unknown_tensors == {BIAS: "bfloat16 [4, 256]", MEDUSA: "bfloat16 [3, 128]"}
    assert report.refused_settings == ["headscale: True scales the heads"]
    assert report.other_settings["my_own"] == "3"
    assert "num_layers" not in report.other_settings
    assert len(report.dropped_tensors) == 5
    done = subprocess.run(
        [NEMOTRON, "inspect", foreign, "--verbose"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0].split() == ["kind", "base", "model"]
    for text in (BIAS, "headscale", "my_own", "_extra_state"):
        assert text in done.stdout
    with pytest.raises(NemotronError, match="headscale: True"):
        convert(foreign, foreign.with_name("out"), Options(TP2))


def test_inspect_names_the_kind_of_an_adapter(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    lora = "model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight"
    add_array(folder, lora, (8, 128))
    report = inspect(folder)
    assert (report.kind, report.convertible) == ("LoRA adapter", False)
    assert report.adapter is not None
    assert report.adapter.fault is not None
    assert "only one of" in report.adapter.fault


def test_another_prompt_format_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = unpack(tmp_path / "in")
    tokens = {"system_turn_start": "<extra_id_0>", "turn_start": "\x11", "end_of_turn": "\n"}
    add_settings(folder, data={"chat_prompt_tokens": tokens})
    report = inspect(folder)
    assert report.kind.startswith("instruct model, tuned on examples")
    assert report.other_chat_tokens == {"turn_start": "\x11"}
    manifest = convert(folder, tmp_path / "out", Options(TP2))
    assert manifest.other_chat_tokens == {"turn_start": "\x11"}
    assert "another prompt format than the model card's" in capsys.readouterr().err
    add_settings(folder, data={"chat_prompt_tokens": tokens | {"turn_start": "<extra_id_1>"}})
    assert convert(folder, tmp_path / "out2", Options(TP2)).other_chat_tokens == {}
    assert capsys.readouterr().err == ""


def test_a_tensor_is_left_out_by_hand_and_the_manifest_remembers(
    foreign: Path, tmp_path: Path
) -> None:
    options = Options(TP2, ignore=("model.medusa.*", BIAS))
    expected = convert(NEMO, tmp_path / "expected", Options(TP2))
    assert convert(foreign, tmp_path / "out", options).files == expected.files
    assert read_manifest(tmp_path / "out").ignored_tensors == [BIAS, MEDUSA]
    assert expected.ignored_tensors == []
    done = subprocess.run(
        [NEMOTRON, "convert", foreign, "-o", "o", "--tp", "2", "--ignore-tensor", "*medusa*"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert BIAS in done.stderr
    assert MEDUSA not in done.stderr


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=r"medusa\* matches no tensor.*--ignore-tensor"):
        convert(NEMO, tmp_path / "out", Options(TP2, ignore=("*medusa*",)))


def test_verify_is_red_about_what_the_checkpoint_does_not_have(
    foreign: Path, tmp_path: Path
) -> None:
    """A checkpoint of an earlier version may lack what was dropped silently then."""
    convert(NEMO, tmp_path / "out", Options(TP2))
    add_settings(foreign, headscale=True)
    verification = verify(tmp_path / "out", foreign)
    assert not verification.is_safe
    text = "\n".join(map(str, verification.faults))
    for part in (f"tensor {BIAS}", f"tensor {MEDUSA}", "setting headscale"):
        assert f"source: {part}" in text
    assert len(verification.faults) == 3


def test_verify_is_green_about_what_was_left_out_by_hand(foreign: Path, tmp_path: Path) -> None:
    convert(foreign, tmp_path / "out", Options(TP2, ignore=("*medusa*", BIAS)))
    assert verify(tmp_path / "out", foreign).is_safe


def test_a_tensor_that_only_one_rank_of_a_legacy_checkpoint_has(tmp_path: Path) -> None:
    """The second stage has an embedding of its own, as models with tied embeddings have."""
    import torch

    folder = legacy(tmp_path / "in", 1, 2)
    path = folder / "tp_rank_00_pp_rank_001" / "model_weights.ckpt"
    state = torch.load(path, weights_only=False)
    embedding = "model.embedding.word_embeddings.weight"
    first = torch.load(folder / "tp_rank_00_pp_rank_000" / path.name, weights_only=False)
    torch.save(state | {embedding: first[embedding]}, path)
    with pytest.raises(NemotronError, match=rf"no such tensors: {embedding} \(BF16 \[512, 128\]\)"):
        convert(folder, tmp_path / "out", Options(TP2))


def test_virtual_pipeline_stages_are_refused_by_name(tmp_path: Path) -> None:
    import torch

    folder = legacy(tmp_path / "in", 1, 1)
    path = folder / "model_weights.ckpt"
    torch.save({"model_0": torch.load(path, weights_only=False)}, path)
    with pytest.raises(NemotronError, match="virtual pipeline stages"):
        convert(folder, tmp_path / "out", Options(TP2))


def test_json_has_the_same_words(foreign: Path) -> None:
    done = subprocess.run(
        [NEMOTRON, "inspect", foreign, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["unknown_tensors"][BIAS] == "bfloat16 [4, 256]"
