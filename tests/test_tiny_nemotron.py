"""The committed model is what it says it is, by transformers' own account."""

from __future__ import annotations

import tarfile
import unicodedata
from pathlib import Path

import pytest
import torch
from transformers import NemotronForCausalLM

from nemotron_core.text import Tokenizer
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.dialogues import load_dialogues, prompt_ids, questions
from tests.tiny_nemotron.nemo_file import NEMO, read_tokenizer
from tests.tiny_nemotron.pack import pack
from tests.tiny_nemotron.reference import exact_answers, load_hf_model
from tests.tiny_nemotron.train import tiny_config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_answers_its_dialogues(
    dtype: torch.dtype, tokenizer: Tokenizer, answers: list[ExactAnswer]
) -> None:
    asked = questions(load_dialogues())
    exact = exact_answers(load_hf_model(dtype=dtype), tokenizer, asked)
    assert len(asked) > 300
    assert len(exact) >= 0.98 * len(asked)
    if dtype == torch.float32:  # another CPU may round a near-tie otherwise
        assert sum(one in exact for one in answers) >= 0.98 * len(answers)


def test_it_is_small_and_its_special_pieces_are_the_real_ones(tokenizer: Tokenizer) -> None:
    assert NEMO.stat().st_size <= 10_000_000
    pieces = ["<pad>", "<unk>", "<s>", "</s>", "<extra_id_0>", "<extra_id_1>"]
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=read_tokenizer())
    assert [model.id_to_piece(i) for i in range(6)] == pieces
    assert tokenizer.end_ids == (5, 3)


def test_it_was_saved_from_eight_ranks() -> None:
    with tarfile.open(NEMO) as tar:
        names = tar.getnames()
    prefix = "./model_weights/model.decoder.layers."
    for tensor, chunk in (
        ("self_attention.linear_qkv.weight", "3.7.0"),
        ("self_attention.linear_proj.weight", "3.0.7"),
        ("mlp.linear_fc1.weight", "3.7.0"),
        ("mlp.linear_fc2.weight", "3.0.7"),
    ):
        assert f"{prefix}{tensor}/{chunk}" in names


def test_the_dialogues_are_of_every_kind(answers: list[ExactAnswer], tokenizer: Tokenizer) -> None:
    texts = [one.question.answer for one in answers]

    def in_script(script: str) -> int:
        return sum(any(unicodedata.name(c, "").startswith(script) for c in text) for text in texts)

    assert in_script("CJK UNIFIED") >= 10
    assert in_script("HIRAGANA") >= 5
    assert in_script("ARABIC LETTER") >= 5
    assert sum(any(ord(c) >= 0x1F300 for c in text) for text in texts) >= 10  # emoji
    assert sum("\n" in text for text in texts) >= 10
    asked = [one.question.messages for one in answers]
    assert sum(len([m for m in messages if m.role == "user"]) == 2 for messages in asked) >= 10
    assert sum(messages[0].role == "system" for messages in asked) >= 10
    by_last: dict[tuple[str, bool], set[str]] = {}
    for one in answers:
        single = [m for m in one.question.messages if m.role == "user"]
        if len(single) == 1:
            by_last.setdefault((single[0].content, True), set()).add(one.question.answer)
    assert sum(len(found) > 1 for found in by_last.values()) >= 3  # the system message decides
    split = [
        one
        for one in answers
        if any(isinstance(tokenizer.token_text(i), int) for i in one.token_ids)
    ]
    assert len(split) >= 20  # answers that hold byte pieces
    assert len({tuple(prompt_ids(tokenizer, m)) for m in asked}) == len(asked)


def test_packing_is_deterministic_and_reads_back(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = tiny_config(64)
    config.num_hidden_layers = 2
    weights = NemotronForCausalLM(config).to(torch.bfloat16).state_dict()
    for name in ("a.nemo", "b.nemo"):
        pack(weights, config, b"a tokenizer", tmp_path / name)
    assert (tmp_path / "a.nemo").read_bytes() == (tmp_path / "b.nemo").read_bytes()
    assert read_tokenizer(tmp_path / "a.nemo") == b"a tokenizer"
    whole = load_hf_model(NEMO).to(torch.bfloat16)
    pack(whole.state_dict(), whole.config, read_tokenizer(), tmp_path / "again.nemo")
    assert (tmp_path / "again.nemo").read_bytes() == NEMO.read_bytes()
