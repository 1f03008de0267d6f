"""Hugging Face folders as the source: the same bytes as from the `.nemo`, in every target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nemotron_build.openvino_model import build_model
from nemotron_convert.calibration.options import CalibrationOptions
from nemotron_convert.convert import Options, convert
from nemotron_convert.inspect import inspect
from nemotron_convert.shards import Parallel
from nemotron_convert.source.kind import Kind
from nemotron_convert.source.tokenizer_json import sentencepiece_model
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.hf_tokenizer import hf_tokenizer
from nemotron_convert.target.layout import Dtype, Format, Precision
from nemotron_convert.target.manifest import Manifest, read_manifest
from nemotron_convert.verification.verifier import verify
from nemotron_core.errors import NemotronError
from nemotron_core.family import FAMILY
from nemotron_core.text.prompt import CHAT_TEMPLATE
from nemotron_core.text.sentencepiece_model import SentencePieceModel
from tests.convert.hf_folders import (
    HF_TINY,
    copy_tiny,
    edit_config,
    edit_json,
    edit_tensors,
    random_folder,
    set_template,
    split_files,
)
from tests.convert.nemo import GOLDEN, NEMO
from tests.convert.test_family import logits, shrunk
from tests.convert.test_hf import KINDS, train
from tests.tiny_nemotron.nemo_file import NEMO as TRAINED

HF = Options(Parallel(1, 1), Format.HF)
FP8 = Options(
    Parallel(2, 1),
    precision=Precision(Dtype.FP8),
    calibration=CalibrationOptions(ids=GOLDEN / "calibration_ids.json", devices="cpu"),
)


def files(manifest: Manifest, *others: str) -> dict[str, Any]:
    """The hashes of what was converted, without other files."""
    return {name: entry for name, entry in manifest.files.items() if name not in others}


@pytest.mark.parametrize(
    "options",
    [Options(Parallel(tp, pp)) for tp, pp in ((1, 1), (2, 3), (8, 1), (16, 2))] + [HF, FP8],
    ids=["tp1", "tp2pp3", "tp8", "tp16pp2", "hf", "fp8"],
)
def test_the_same_bytes_as_from_the_nemo(options: Options, tmp_path: Path) -> None:
    convert(NEMO, tmp_path / "direct", options)
    convert(HF_TINY, tmp_path / "out", options)
    direct, actual = read_manifest(tmp_path / "direct"), read_manifest(tmp_path / "out")
    source = "calibration.json"  # it names the source
    assert files(actual, source) == files(direct, source)
    assert actual.source == "hf_tiny"


def test_nemo_to_hugging_face_to_tensorrt_llm_is_the_direct_way(tmp_path: Path) -> None:
    options = Options(Parallel(4, 2))
    direct = convert(TRAINED, tmp_path / "direct", options)
    convert(TRAINED, tmp_path / "hf", HF)
    assert convert(tmp_path / "hf", tmp_path / "out", options).files == direct.files
    again = convert(tmp_path / "hf", tmp_path / "hf2", HF)
    assert again.files == read_manifest(tmp_path / "hf").files
    assert verify(tmp_path / "out", tmp_path / "hf", ids=None).is_safe


def test_files_with_an_index(tmp_path: Path) -> None:
    expected = convert(HF_TINY, tmp_path / "whole", Options(Parallel(4, 1)))
    folder = split_files(copy_tiny(tmp_path / "in"))
    assert convert(folder, tmp_path / "out", Options(Parallel(4, 1))).files == expected.files


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    shape = shrunk(FAMILY["minitron-4b-base"].config)
    random_folder(tmp_path / "in", shape, layers=2, vocab=1024, tied=True)
    convert(tmp_path / "in", tmp_path / "out", HF)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "in"))


def test_a_stored_head_that_should_be_tied_must_be_the_embedding(tmp_path: Path) -> None:
    folder = edit_config(copy_tiny(tmp_path / "in"), tie_word_embeddings=True)
    with pytest.raises(NemotronError, match=r"tie_word_embeddings is true, but lm_head\.weight"):
        convert(folder, tmp_path / "out", HF)
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 0}))
    convert(folder, tmp_path / "out", HF)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types_are_rounded_as_from_a_nemo(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "in")
    edit_tensors(folder, lambda t: t.update({name: part.to(dtype) for name, part in t.items()}))
    manifest = convert(folder, tmp_path / "out", HF)
    expected = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    actual = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    assert manifest.source_dtypes == [{torch.float16: "F16", torch.float32: "F32"}[dtype]]
    with pytest.raises(NemotronError, match="convert without --strict"):
        convert(folder, tmp_path / "strict", Options(Parallel(1, 1), Format.HF, strict=True))


def test_the_configuration_of_transformers_5(tmp_path: Path) -> None:
    """It has the rotary embedding's keys in a mapping of their own, and another base here."""
    expected = json.loads((HF_TINY / "config.json").read_text())
    rope = {"rope_theta": 500000.0, "rope_type": "default", "partial_rotary_factor": 0.25}
    folder = edit_config(copy_tiny(tmp_path / "in"), rope_parameters=rope)
    edit_json(folder / "config.json", lambda config: config.pop("rope_theta"))
    edit_json(folder / "config.json", lambda config: config.pop("partial_rotary_factor"))
    config = inspect(folder).config
    assert (config["rotary_base"], config["rotary_pct"]) == (500000.0, 0.25)
    assert config["max_positions"] == expected["max_position_embeddings"]


def test_keys_that_are_missing_have_transformers_defaults(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "in")
    for key in ("partial_rotary_factor", "norm_eps", "rope_theta", "hidden_act", "architectures"):
        edit_json(folder / "config.json", lambda config, key=key: config.pop(key))
    assert inspect(folder).config == inspect(HF_TINY).config


@pytest.mark.parametrize("key", sorted(json.loads((HF_TINY / "config.json").read_text())))
def test_null_is_a_missing_key(key: str, tmp_path: Path) -> None:
    def read(folder: Path) -> object:
        try:
            return inspect(folder).config
        except NemotronError as error:
            return error.what

    rope = {"rope_theta": None, "partial_rotary_factor": None, "rope_type": None}
    null = edit_config(copy_tiny(tmp_path / "null"), **{key: None}, rope_parameters=rope)
    absent = copy_tiny(tmp_path / "absent")
    edit_json(absent / "config.json", lambda config: config.pop(key))
    assert read(null) == read(absent)


def test_an_engine_of_the_cpu_lane(tmp_path: Path) -> None:
    """The graph of a shape whose heads are wider than its hidden states computes its logits."""
    import openvino

    shape = shrunk(FAMILY["minitron-8b-base"].config)
    random_folder(tmp_path / "in", shape, layers=2, vocab=512)
    convert(tmp_path / "in", tmp_path / "out", Options(Parallel(2, 2)))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "in", dtype=torch.float32)
    with torch.no_grad():  # the checkpoint holds gamma + 1 in BF16
        for name, weight in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.copy_((weight + 1).bfloat16().float() - 1)
    ids = torch.arange(6, 38)[None]
    graph = build_model(Checkpoint.open(tmp_path / "out"), "f32")
    compiled = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    positions = torch.arange(ids.shape[1])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}
    arrays = {name: value.numpy() for name, value in inputs.items()}
    result = compiled(arrays | {"beam_idx": torch.zeros(1, dtype=torch.int32).numpy()})
    with torch.inference_mode():
        expected = model(ids).logits
    assert torch.allclose(torch.from_numpy(result["logits"]), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalization", ["identity", "nmt_nfkc"])
def test_a_tokenizer_json_becomes_its_sentencepiece_model(
    kind: str, normalization: str, tmp_path: Path
) -> None:
    import sentencepiece

    reference = train(
        tmp_path,
        normalization_rule_name=normalization,
        remove_extra_whitespaces=False,
        **KINDS[kind],
    )
    original = SentencePieceModel.parse((tmp_path / "sp.model").read_bytes())
    data = hf_tokenizer(original).to_str().encode()
    ours = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(data))
    assert ours.vocab_size() == reference.vocab_size()
    for i in range(ours.vocab_size()):
        assert ours.id_to_piece(i) == reference.id_to_piece(i)
        assert ours.is_control(i) == reference.is_control(i)
        assert ours.is_byte(i) == reference.is_byte(i)
    special = st.sampled_from(["<extra_id_0>", "<extra_id_1>", "</s>", "\n", "  ", "日本", "🙂"])

    @settings(max_examples=150)
    @given(st.lists(special | st.text(max_size=12), max_size=6).map("".join))
    def check(text: str) -> None:
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            return
        ids = reference.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == reference.decode(ids)

    check()


def test_a_folder_without_a_sentencepiece_model(tmp_path: Path) -> None:
    convert(TRAINED, tmp_path / "in", HF)
    options, tokenizer = Options(Parallel(2, 1)), "tokenizer.model"
    expected = files(convert(tmp_path / "in", tmp_path / "with", options), tokenizer)
    (tmp_path / "in" / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    assert files(convert(tmp_path / "in", tmp_path / "out", options), tokenizer) == expected


def test_our_template_is_found_to_be_ours(tmp_path: Path) -> None:
    folder = set_template(copy_tiny(tmp_path / "in"), CHAT_TEMPLATE)
    report = inspect(folder)
    assert (report.refused_template, report.template_notes) == ("", [])
    assert report.kind == Kind.SFT.value
    assert inspect(HF_TINY).kind == Kind.BASE.value
