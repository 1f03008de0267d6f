"""The detokenizer against SentencePiece itself, and against a definition by brute force."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from nemotron_core.text import StreamingDetokenizer, Tokenizer
from tests.core.references import BROKEN, BYTE_RUNS, CUTS, TOKENS, VOCABULARY, decode, split


@given(ids=TOKENS, cuts=CUTS, show_control=st.booleans())
@example(ids=[*"日".encode()[:2], *"本".encode()], cuts=[], show_control=False)
@example(ids=[*"日".encode()[:2], 256], cuts=[1, 2], show_control=False)
def test_after_every_push_the_text_is_that_of_all_tokens_so_far(
    ids: list[int], cuts: list[int], show_control: bool
) -> None:
    detokenizer = StreamingDetokenizer(VOCABULARY, show_control=show_control)
    pushed: list[int] = []
    text = ""
    for part in split(ids, cuts):
        pushed += part
        text += detokenizer.push(part)
        assert text == decode(pushed, show_control=show_control)


def test_a_broken_byte_does_not_break_the_character_behind_it() -> None:
    for character in ("é", "日", "🐝"):
        for broken in (b"\xff", b"\x80", "日".encode()[:1], "日".encode()[:2], "🐝".encode()[:3]):
            detokenizer = StreamingDetokenizer(VOCABULARY)
            ids = [*broken, *character.encode()]
            assert detokenizer.push(ids) == BROKEN * len(broken) + character
            assert detokenizer.push([256]) == " word"


def test_control_tokens_are_shown_only_if_asked_for_by_name() -> None:
    ids = [256, VOCABULARY.END, 257]
    assert StreamingDetokenizer(VOCABULARY).push(ids) == " worda"
    shown = StreamingDetokenizer(VOCABULARY, show_control=True)
    assert shown.push(ids) == " word<extra_id_1>a"
    with pytest.raises(TypeError):
        StreamingDetokenizer(VOCABULARY, True)  # type: ignore[misc]


@given(data=st.data(), cuts=CUTS)
def test_the_text_of_any_tokens_is_sentencepieces_own(
    tokenizer_path: Path, data: st.DataObject, cuts: list[int]
) -> None:
    """As a continuation of a prompt, and with a word behind it, so that no byte is held back."""
    tokenizer = Tokenizer(tokenizer_path)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    byte_ids = [plain.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    runs = BYTE_RUNS.map(lambda run: [byte_ids[byte] for byte in run])
    words = st.integers(0, tokenizer.vocab_size - 1).map(lambda id_: [id_])
    drawn = data.draw(st.lists(runs | words, max_size=15))
    first = tokenizer.encode("a")
    ids = [*(id_ for run in drawn for id_ in run), *first]
    detokenizer = StreamingDetokenizer(tokenizer, show_control=True)
    text = "".join(detokenizer.push(part) for part in split(ids, cuts))
    assert text == plain.decode([*first, *ids])[len(plain.decode(first)) :]
    text.encode()  # raises if a piece holds half a surrogate pair
