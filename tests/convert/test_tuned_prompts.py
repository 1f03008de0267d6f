"""Models that were tuned on other prompts than the model card's: their format is carried along."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

from nemotron_build.engine_folder import build_engine, plan_engine
from nemotron_build.profile import Profile
from nemotron_convert.convert import Options, convert
from nemotron_convert.inspect import inspect
from nemotron_convert.shards import Parallel
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.layout import Format
from nemotron_core.errors import NemotronError
from nemotron_core.text import Tokenizer, render_prompt
from nemotron_core.text.chat_format import CARD, FILE_NAME, ChatFormat
from nemotron_core.text.prompt import CHAT_TEMPLATE
from nemotron_engine.adapters import load_adapter
from nemotron_serve.repository import identity
from tests.convert.adapters import BASE, QKV, read_adapter, read_config, write_adapter
from tests.convert.hf_folders import copy_tiny, set_template
from tests.engine.requests import Engine, request
from tests.tiny_nemotron.answers import ExactAnswer, answer_text
from tests.tiny_nemotron.dialogues import prompt_ids
from tests.tiny_nemotron.nemo_file import read_members

TP1 = Options(Parallel(1, 1))
HF = Options(Parallel(1, 1), Format.HF)
TOKENS = {
    "system_turn_start": "<extra_id_0>",
    "turn_start": "<extra_id_3>",
    "label_start": "<extra_id_2>",
    "end_of_turn": "\n",
    "end_of_name": "\n",
}
WRITTEN = ChatFormat(
    no_system="<extra_id_0>System\n\n",
    system_start="<extra_id_0>System\n",
    system_end="\n",
    user_start="<extra_id_3>User\n",
    user_end="\n",
    assistant_start="<extra_id_3>Assistant\n",
    assistant_end="\n",
)
"""What NeMo's data set of chats writes with these tokens."""
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
TURN, OTHER_TURN, ROW = 5, 7, 512
"""Two control pieces, and the bytes of a row of the tiny model's vocabulary."""


def unpack(folder: Path, **settings: Any) -> Path:
    """Write the tiny model as a folder with these settings."""
    for name, data in read_members(BASE).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    path = folder / "model_config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))
    return folder


def tuned(folder: Path, **tokens: object) -> Path:
    return unpack(folder, data={"chat_prompt_tokens": TOKENS | tokens})


def test_a_model_that_begins_its_turns_with_another_piece(
    answers: list[ExactAnswer], tokenizer: Tokenizer, cpu_profile: Profile, tmp_path: Path
) -> None:
    """The tiny model with two rows of its vocabulary exchanged answers as before."""
    folder = tuned(tmp_path / "in")
    for name in ("embedding.word_embeddings", "output_layer"):
        path = folder / "model_weights" / f"model.{name}.weight" / "0.0"
        rows = bytearray(path.read_bytes())
        one, other = (slice(id_ * ROW, (id_ + 1) * ROW) for id_ in (TURN, OTHER_TURN))
        rows[one], rows[other] = rows[other], rows[one]
        path.write_bytes(rows)
    convert(folder, tmp_path / "out", TP1)
    profile = cpu_profile.model_copy(update={"dtype": "f32"})
    assert FILE_NAME in plan_engine(tmp_path / "out", tmp_path / "engine", profile).files
    record = build_engine(tmp_path / "out", tmp_path / "engine", profile)
    assert FILE_NAME in record.files
    own = Tokenizer(tmp_path / "engine" / "tokenizer.model")
    assert own.end_ids[0] == OTHER_TURN
    asked = [one for one in answers if one.question.messages[0].role != "system"][:8]
    engine = Engine(load_adapter("cpu", tmp_path / "engine"))
    prompts = [prompt_ids(own, one.question.messages) for one in asked]
    running = engine.ask_all(
        [request(ids, max_tokens=200, end_ids=list(own.end_ids)) for ids in prompts]
    )
    for answer, exact in zip(running, asked, strict=True):
        swapped = [{TURN: OTHER_TURN}.get(id_, id_) for id_ in exact.token_ids]
        assert answer.wait().token_ids == swapped
        assert answer_text(own, swapped) == exact.question.answer
    names = [identity(folder, record)["template"] for folder in (tmp_path / "engine", tmp_path)]
    assert names[0] != names[1]
    assert prompts[0] != prompt_ids(tokenizer, asked[0].question.messages)


def test_the_format_of_nemo_is_carried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tuned(tmp_path / "in")
    report = inspect(folder)
    assert (report.convertible, report.chat_fault) == (True, "")
    assert report.other_chat_tokens == {"turn_start": "<extra_id_3>"}
    assert ChatFormat(**report.chat_format or {}) == WRITTEN
    for options in (TP1, HF):
        out = tmp_path / options.format.value
        manifest = convert(folder, out, options)
        assert "chats are given this model's own prompt format" in capsys.readouterr().err
        assert FILE_NAME in manifest.files
        assert ChatFormat.read(out) == WRITTEN
        assert manifest.other_chat_tokens == {"turn_start": "<extra_id_3>"}
    plain = convert(BASE, tmp_path / "plain", TP1)
    assert FILE_NAME not in plain.files


def test_the_hugging_face_folder_has_it_too(tmp_path: Path) -> None:
    convert(tuned(tmp_path / "in"), tmp_path / "hf", HF)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text == render_prompt(CHAT, chat_format=WRITTEN)  # type: ignore[arg-type]
    assert text == (
        "<extra_id_0>System\nBe brief.\n<extra_id_3>User\nHello\n<extra_id_3>Assistant\n"
    )
    ends = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [OTHER_TURN, 3]
    again = convert(tmp_path / "hf", tmp_path / "again", TP1)  # read off its template
    assert FILE_NAME in again.files
    assert ChatFormat.read(tmp_path / "again") == WRITTEN


def test_a_lora_decides_on_the_prompts(tmp_path: Path) -> None:
    config = read_config(QKV) | {"data": {"chat_prompt_tokens": TOKENS}}
    lora = write_adapter(tmp_path / "lora", read_adapter(QKV), config)
    assert inspect(lora).other_chat_tokens == {"turn_start": "<extra_id_3>"}
    convert(BASE, tmp_path / "out", Options(Parallel(1, 1), adapters=(lora,)))
    assert ChatFormat.read(tmp_path / "out") == WRITTEN
    again = Options(Parallel(1, 1), adapters=(lora, QKV))
    convert(BASE, tmp_path / "out2", again)
    assert ChatFormat.read(tmp_path / "out2") == WRITTEN
    with Source.open(tuned(tmp_path / "base"), adapters=[write_card_lora(tmp_path)]) as source:
        assert source.chat.chat_format is None


def write_card_lora(tmp_path: Path) -> Path:
    tokens = TOKENS | {"turn_start": "<extra_id_1>"}
    config = read_config(QKV) | {"data": {"chat_prompt_tokens": tokens}}
    return write_adapter(tmp_path / "card", read_adapter(QKV), config)


@pytest.mark.parametrize(
    ("tokens", "fault"),
    [
        ({"turn_start": "\x11"}, "turn begins with .*, which is no control piece"),
        ({"end_of_turn": " END "}, "an answer ends with ' END '"),
        ({"turn_start": "<extra_id_77>"}, "the tokenizer has no piece <extra_id_77>"),
        ({"end_of_name": "</s>"}, "no prompt can have the piece </s>"),
        ({"system_turn_start": 5}, "system_turn_start is no text"),
        ({"conversation_header": "x"}, "conversation_header leaves no place for system messages"),
    ],
)
def test_formats_that_cannot_be_given(
    tokens: dict[str, Any], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tuned(tmp_path / "in", **tokens)
    assert inspect(folder).chat_fault
    manifest = convert(folder, tmp_path / "out", TP1)
    note = capsys.readouterr().err
    assert re.search(fault, note)
    assert "cannot be carried" in note
    assert "send it raw prompts" in note
    assert FILE_NAME not in manifest.files
    assert set(tokens) <= set(manifest.other_chat_tokens)


def test_another_label_changes_no_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tuned(tmp_path / "in", turn_start="<extra_id_1>", label_start="<extra_id_4>")
    manifest = convert(folder, tmp_path / "out", TP1)
    assert FILE_NAME not in manifest.files
    assert manifest.other_chat_tokens == {"label_start": "<extra_id_4>"}
    assert capsys.readouterr().err == ""


TEMPLATES = {
    "another piece": CHAT_TEMPLATE.replace("_1>", "_3>").replace("_0>", "_4>"),
    "other names": CHAT_TEMPLATE.replace("turn.role.capitalize()", "turn.role + ':'").replace(
        "1>Assistant", "1>assistant:"
    ),
    "ends of turns": (
        "{% for m in messages %}<extra_id_5>{{ m.role }}\n{{ m.content }}<extra_id_6>\n{% endfor %}"
        "{% if add_generation_prompt %}<extra_id_5>assistant\n{% endif %}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_is_read_off(name: str, tmp_path: Path) -> None:
    folder = set_template(copy_tiny(tmp_path / "in"), TEMPLATES[name])
    report = inspect(folder)
    assert (report.refused_template, report.convertible) == ("", True)
    convert(folder, tmp_path / "hf", HF)
    convert(folder, tmp_path / "out", TP1)
    carried = ChatFormat.read(tmp_path / "out")
    assert carried == ChatFormat(**report.chat_format or {}) != CARD
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    own = Tokenizer(tmp_path / "out" / "tokenizer.model")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    before = environment.from_string(TEMPLATES[name])
    turns = [*CHAT, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "你好"}]
    for messages in (CHAT, turns, turns[1:]):
        text = before.render(messages=messages, add_generation_prompt=True)
        options = {"add_generation_prompt": True, "tokenize": False}
        assert theirs.apply_chat_template(messages, **options) == text
        assert own.encode_chat(messages) == own.encode(text)  # type: ignore[arg-type]


def test_a_template_without_such_a_form_is_refused(tmp_path: Path) -> None:
    template = CHAT_TEMPLATE.replace("turn.content", "turn.content * loop.index")
    folder = set_template(copy_tiny(tmp_path / "in"), template)
    with pytest.raises(NemotronError, match="for several turns, the chat template gives"):
        convert(folder, tmp_path / "out", TP1)
    assert not inspect(folder).convertible
    ignored = Options(Parallel(1, 1), ignore_template=True)
    manifest = convert(folder, tmp_path / "out", ignored)
    assert FILE_NAME not in manifest.files
    assert manifest.template_notes[0].startswith("for several turns")
