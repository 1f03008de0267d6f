"""Hugging Face folders whose headers, index or configuration lie, or point outside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.guard import Attack, Build, try_attack
from tests.convert.nemo import GOLDEN

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def folder(edit: Callable[[Path], object]) -> Build:
    def build(place: Path) -> Path:
        copy = Path(shutil.copytree(GOLDEN / "hf_tiny", place / "in"))
        edit(copy)
        return copy

    return build


def header(content: object, *, length: int | None = None) -> Build:
    """A file of weights with this header, and perhaps another length in front of it."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    size = len(data) if length is None else length

    def edit(place: Path) -> None:
        (place / WEIGHTS).write_bytes(size.to_bytes(8, "little") + data + bytes(64))

    return folder(edit)


def tensor(**changes: object) -> Build:
    entry = {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]} | changes
    return header({"lm_head.weight": entry})


def index(file: str) -> Build:
    def edit(place: Path) -> None:
        (place / WEIGHTS).unlink()
        content = {"weight_map": {"lm_head.weight": file}}
        (place / INDEX).write_text(json.dumps(content))

    return folder(edit)


def config(text: str) -> Build:
    return folder(lambda place: (place / "config.json").write_text(text))


def setting(key: str, value: str) -> Build:
    """The configuration with another value, written as JSON."""

    def edit(place: Path) -> None:
        path = place / "config.json"
        content = json.dumps(json.loads(path.read_text()) | {key: "VALUE"})
        path.write_text(content.replace('"VALUE"', value))

    return folder(edit)


def link(place: Path) -> None:
    (place / WEIGHTS).unlink()
    (place / WEIGHTS).symlink_to(place.parent.parent / "canary")


DAMAGED = "not a whole safetensors file: "
ATTACKS = {
    "header longer than the file": Attack(header({}, length=1 << 62), f"{DAMAGED}the header has"),
    "header that is a list": Attack(header([1]), DAMAGED),
    "header nested deeply": Attack(header(b"[" * 100_000), DAMAGED),
    "a name twice": Attack(header(b'{"a": {}, "a": {}}'), f"{DAMAGED}a name comes twice"),
    "enormous shape": Attack(tensor(shape=[1 << 62, 1 << 62]), f"{DAMAGED}.*has offsets"),
    "negative shape": Attack(tensor(shape=[-4, -8]), f"{DAMAGED}.*has shape"),
    "fractional shape": Attack(tensor(shape=[4.0, 8.0]), f"{DAMAGED}.*has shape"),
    "boolean offsets": Attack(tensor(data_offsets=[False, 64]), f"{DAMAGED}.*has shape"),
    "offsets beyond the end": Attack(tensor(data_offsets=[64, 128]), f"{DAMAGED}.*has offsets"),
    "a gap before a tensor": Attack(
        tensor(shape=[4, 4], data_offsets=[32, 64]), f"{DAMAGED}.*begins at byte"
    ),
    "bytes that no tensor has": Attack(
        tensor(shape=[4, 4], data_offsets=[0, 32]), f"{DAMAGED}the tensors end at"
    ),
    "unknown type": Attack(tensor(dtype="X" * 1000), f"{DAMAGED}.*has dtype XX"),
    "a name that moves the cursor": Attack(
        header({"\x1b[2J": {"dtype": "Q", "shape": [], "data_offsets": [0, 0]}}), DAMAGED
    ),
    "index: path outside": Attack(index("../../canary"), "is no name of a safetensors file"),
    "index: absolute path": Attack(index("/etc/passwd"), "is no name of a safetensors file"),
    "index: path outside, with the ending": Attack(
        index("../x.safetensors"), "is no name of a safetensors file"
    ),
    "link outside": Attack(folder(link), "is not a plain file"),
    "configuration nested deeply": Attack(config("[" * 100_000), "not JSON"),
    "configuration that is a number": Attack(config("1"), "not a JSON object"),
    "a size of 4,000 digits": Attack(setting("num_hidden_layers", "1" * 4000), "num_hidden_lay"),
    "a trillion layers": Attack(setting("num_hidden_layers", "1000000000000"), "num_hidden_lay"),
    "two billion layers": Attack(setting("num_hidden_layers", "2000000000"), "layers"),
    "no heads": Attack(setting("num_attention_heads", "0"), "num_attention_heads: expected"),
    "a vocabulary that is a list": Attack(setting("vocab_size", "[512]"), "vocab_size: expected"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused_without_effect(name: str, tmp_path: Path) -> None:
    try_attack(ATTACKS[name], tmp_path)
