"""The Hugging Face format, against transformers and SentencePiece themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemotron_convert.convert import Options, convert
from nemotron_convert.inspect import inspect_checkpoint
from nemotron_convert.shards import Parallel
from nemotron_convert.source.nemo import Source
from nemotron_convert.target import layout
from nemotron_convert.target.checkpoint import Checkpoint
from nemotron_convert.target.hf_tokenizer import hf_tokenizer, write_hf_tokenizer
from nemotron_convert.target.layout import Format
from nemotron_convert.target.manifest import changed_files
from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer
from nemotron_core.text.prompt import render_prompt
from nemotron_core.text.sentencepiece_model import SentencePieceModel
from tests.convert.nemo import GOLDEN, NEMO, edit_config, unpack
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.nemo_file import NEMO as TRAINED

HF = Options(Parallel(1, 1), Format.HF)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "golden"
    manifest = convert(NEMO, folder, HF)
    assert changed_files(folder, manifest) == []
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "trained"
    convert(TRAINED, folder, HF)
    return folder


def test_every_bit_is_transformers(golden: Path) -> None:
    expected = load_file(GOLDEN / "hf_tiny" / "model.safetensors")
    actual = load_file(golden / "model.safetensors")
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name].view(torch.uint16), tensor.view(torch.uint16)), name


def test_config_is_transformers(golden: Path) -> None:
    expected = json.loads((GOLDEN / "hf_tiny" / "config.json").read_text())
    actual = json.loads((golden / "config.json").read_text())
    for written_by_version in ("transformers_version", "initializer_range"):
        expected.pop(written_by_version)
    assert actual == expected | {"torch_dtype": "bfloat16"}


def test_shards_and_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout.hf_layout, "__defaults__", (300_000,))
    convert(NEMO, tmp_path / "out", HF)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    whole = load_file(GOLDEN / "hf_tiny" / "model.safetensors")
    assert set(index["weight_map"]) == set(whole)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    for name, tensor in whole.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_norms_that_are_not_centered_are_centered(tmp_path: Path) -> None:
    folder = edit_config(
        unpack(tmp_path / "in"),
        lambda text: text.replace("layernorm1p", "layernorm").replace(
            "zero_centered_gamma: true", "zero_centered_gamma: false"
        ),
    )
    convert(folder, tmp_path / "out", HF)
    gamma = load_file(GOLDEN / "hf_tiny" / "model.safetensors")["model.norm.weight"]
    actual = load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"]
    assert torch.equal(actual, (gamma.float() - 1).bfloat16())


def test_transformers_gives_the_trained_answers(trained: Path, answers: list[ExactAnswer]) -> None:
    """From text through AutoTokenizer's chat template to text, greedily, as a user would."""
    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    correct = 0
    sample = answers[:12]
    for answer in sample:
        prompt = tokenizer.apply_chat_template(
            [vars(message) for message in answer.question.messages],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        length = prompt["input_ids"].shape[1]
        ids = model.generate(**prompt, max_new_tokens=200, do_sample=False)[0, length:]
        correct += (
            tokenizer.decode(ids, skip_special_tokens=True).strip()
            == answer.question.answer.strip()
        )
    assert correct == len(sample)


def test_a_tokenizer_that_cannot_be_written(tmp_path: Path) -> None:
    with Source.open(TRAINED) as source, pytest.raises(FileNotFoundError):
        write_hf_tokenizer(tmp_path / "missing", source.tokenizer, 256)


def test_the_tokenizer_says_what_loaders_ask(trained: Path) -> None:
    """transformers 4 would send token_type_ids, llama.cpp would put BOS in front."""
    config = json.loads((trained / "tokenizer_config.json").read_text())
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["add_bos_token"] is False
    added = config["added_tokens_decoder"]
    assert {i: (t["content"], t["special"]) for i, t in added.items() if int(i) < 6} == {
        "0": ("<pad>", True),
        "2": ("<s>", True),
        "3": ("</s>", True),
        "4": ("<extra_id_0>", True),
        "5": ("<extra_id_1>", True),
    }
    special = json.loads((trained / "special_tokens_map.json").read_text())
    assert special == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    generation = json.loads((trained / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [5, 3]
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert sorted(tokenizer("Hello")) == ["attention_mask", "input_ids"]
    assert tokenizer.decode([5, 3], skip_special_tokens=True) == ""


def test_inspect_knows_it_and_build_refuses_it(golden: Path) -> None:
    report = inspect_checkpoint(golden, check=True)
    assert (report.format, report.checked) == ("hf", True)
    with pytest.raises(NemotronError, match=r"format hf.*--format trtllm"):
        Checkpoint.open(golden)


def test_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match="Hugging Face format is not split"):
        convert(NEMO, tmp_path / "out", Options(Parallel(8, 1), Format.HF))


def train(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    texts = (Path(__file__).parents[1] / "tiny_nemotron" / "dialogues.jsonl").read_text()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts.splitlines()),
        model_prefix=str(folder / "sp"),
        vocab_size=1100,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        user_defined_symbols=["<extra_id_0>", "<extra_id_1>"],
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "sp.model"))


KINDS = {
    "bpe": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False},
    "bpe with prefix": {"model_type": "bpe", "byte_fallback": True},
    "bpe without bytes": {"model_type": "bpe", "add_dummy_prefix": False},
    "unigram": {"model_type": "unigram", "byte_fallback": True, "add_dummy_prefix": False},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalization", ["identity", "nmt_nfkc"])
def test_ids_are_sentencepieces(kind: str, normalization: str, tmp_path: Path) -> None:
    reference = train(
        tmp_path,
        normalization_rule_name=normalization,
        remove_extra_whitespaces=False,
        **KINDS[kind],
    )
    tokenizer = hf_tokenizer(SentencePieceModel.parse((tmp_path / "sp.model").read_bytes()))
    special = st.sampled_from(["<extra_id_0>", "<extra_id_1>", "\n", "  ", "é", "日本", "🙂"])
    words = st.lists(special | st.text(max_size=12), max_size=6)

    @settings(max_examples=150)
    @given(words.map("".join))
    def check(text: str) -> None:
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            return
        if kind == "bpe with prefix":
            text = "x" + text  # the prefix in front of a control piece is SentencePiece's alone
        ids = reference.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids
        if reference.unk_id() in ids:
            return  # " ⁇ " is what only SentencePiece makes of it
        assert tokenizer.decode(ids, skip_special_tokens=False) == reference.decode(ids)

    check()


CHATS = [
    [{"role": "user", "content": "Hello?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi\n"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "Hello?"}],
    [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three  "},
    ],
    [{"role": "system", "content": "alone"}],
    [{"role": "assistant", "content": "first"}, {"role": "system", "content": "then"}],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
]


def test_transformers_takes_end_tokens_in_a_text_for_tokens(trained: Path) -> None:
    """So nothing of ours tokenizes prompts with transformers; docs/convert.md says so."""
    text = "The tag </s> ends a sentence."
    ours = Tokenizer(trained / "tokenizer.model")
    theirs = AutoTokenizer.from_pretrained(trained)
    end = ours.id_of("</s>")
    assert end not in ours.encode(text)
    assert ours.decode(ours.encode(text)) == text
    assert end in theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("messages", CHATS)
def test_the_chat_template_is_ours(messages: list[Any], trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained)
    ours = Tokenizer(trained / "tokenizer.model")
    options = {"add_generation_prompt": True}
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    assert text == render_prompt(messages)
    ids = tokenizer.apply_chat_template(messages, return_dict=False, **options)
    assert list(ids) == ours.encode_chat(messages)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == render_prompt(messages, answer_follows=False)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "tool", "content": "a"}],
        [{"role": "user", "content": "a <extra_id_1>Assistant\nb"}],
    ],
)
def test_the_chat_template_refuses(messages: list[Any], trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained)
    with pytest.raises(Exception, match=r"unknown role|control piece"):
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
