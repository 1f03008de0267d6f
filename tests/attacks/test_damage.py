"""Each wrong input gives one line that says what is wrong where, and leaves nothing behind."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numcodecs.blosc
import pytest

from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_core.errors import NemotronError
from tests.convert.nemo import NEMO, WEIGHTS, edit_config, edit_zarray, unpack

QKV = "model.decoder.layers.self_attention.linear_qkv.weight"


def refused(source: Path, message: str, tmp_path: Path) -> None:
    """Check that `source` is refused with `message` in one line, and that there is no output."""
    (tmp_path / "results").mkdir()
    with pytest.raises(NemotronError, match=message) as caught:
        convert(source, tmp_path / "results" / "out", Options(Parallel(2, 1)))
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "results").iterdir()] in ([], ["out.partial"])


def bomb(folder: Path, chunk: bytes, compressor: str) -> None:
    """Replace every chunk of QKV by one that decodes to far more bytes than a chunk has."""
    edit_zarray(folder, QKV, compressor={"id": compressor})
    for layer in range(4):
        (folder / WEIGHTS / QKV / f"{layer}.0.0").write_bytes(chunk)


FOLDER_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "model_config.yaml").unlink(), "no model_config.yaml in it"),
    "no weights": (lambda f: shutil.rmtree(f / WEIGHTS), "there are no weights"),
    "no tokenizer": (
        lambda f: next(f.glob("*.model")).unlink(),
        r"tokenizer\.model: 'nemo:.*' is not in the archive",
    ),
    "tensor missing": (lambda f: shutil.rmtree(f / WEIGHTS / QKV), f"tensor {QKV} is missing"),
    "tensor misshapen": (
        lambda f: edit_zarray(f, QKV, shape=[4, 250, 128], chunks=[1, 256, 128]),
        rf"tensor {QKV} has shape \[4, 250, 128\], the configuration asks for \[4, 256, 128\]",
    ),
    "too many axes": (
        lambda f: edit_zarray(f, QKV, shape=[4, 256, 128, 1], chunks=[1, 256, 128, 1]),
        r"shape \[4, 256, 128, 1\]",
    ),
    "chunk missing": (
        lambda f: (f / WEIGHTS / QKV / "2.0.0").unlink(),
        r"2\.0\.0 of tensor .* is missing",
    ),
    "chunk short": (
        lambda f: (f / WEIGHTS / QKV / "1.0.0").write_bytes(b"12"),
        r"1\.0\.0 has 2 bytes, its \.zarray says 65536",
    ),
    "zarray not JSON": (
        lambda f: (f / WEIGHTS / QKV / ".zarray").write_text("{"),
        rf"not JSON: .*{QKV}/\.zarray",
    ),
    "zarray nested": (
        lambda f: (f / WEIGHTS / QKV / ".zarray").write_text("[" * 60000),
        "not JSON",
    ),
    "zarray huge": (
        lambda f: (f / WEIGHTS / QKV / ".zarray").write_text(" " * 70000),
        "more than the 65536",
    ),
    "negative shape": (lambda f: edit_zarray(f, QKV, shape=[4, -1, 128]), "shape is"),
    "zero chunk": (lambda f: edit_zarray(f, QKV, chunks=[1, 0, 128]), "chunks is"),
    "wrong dtype": (lambda f: edit_zarray(f, QKV, dtype="<i4"), "dtype is '<i4'"),
    "Fortran order": (lambda f: edit_zarray(f, QKV, order="F"), "order is 'F'"),
    "another layout": (
        lambda f: (f / WEIGHTS / "metadata.json").write_text('{"sharded_backend": "mine"}'),
        "stored as 'mine'",
    ),
    "metadata empty": (
        lambda f: (f / WEIGHTS / "metadata.json").write_text("[]"),
        "stored as None",
    ),
    "chunk outside the grid": (
        lambda f: (f / WEIGHTS / QKV / "9.0.0").write_bytes(b"\0" * 65536),
        r"9\.0\.0.* is no chunk of tensor",
    ),
    "shape that lies": (
        lambda f: edit_zarray(f, QKV, shape=[3, 256, 128]),
        r"3\.0\.0.* is no chunk of tensor",
    ),
    "chunks that lie": (
        lambda f: edit_zarray(f, QKV, chunks=[1, 128, 128]),
        r"0\.0\.0 has 65536 bytes, its \.zarray says 32768",
    ),
    "huge shape": (
        lambda f: edit_zarray(f, QKV, shape=[1 << 39, 1 << 39, 1 << 39]),
        "has 549755813888 layers",
    ),
    "huge chunk": (
        lambda f: edit_zarray(f, QKV, chunks=[1 << 39, 1 << 39, 1 << 39]),
        "its .zarray says",
    ),
    "number beyond all": (lambda f: edit_zarray(f, QKV, shape=[1 << 80, 1, 1]), "shape is"),
    "fraction": (lambda f: edit_zarray(f, QKV, shape=[4.0, 256, 128]), "shape is"),
    "boolean": (lambda f: edit_zarray(f, QKV, shape=[True, 256, 128]), "shape is"),
    "filter": (lambda f: edit_zarray(f, QKV, filters=[{"id": "delta"}]), "filters is"),
    "unknown compressor": (
        lambda f: edit_zarray(f, QKV, compressor={"id": "pickle"}),
        "compressor is .*pickle.*only null and blosc",
    ),
    "compressor of no kind": (
        lambda f: edit_zarray(f, QKV, compressor=[1]),
        "compressor is",
    ),
    "not compressed after all": (
        lambda f: edit_zarray(f, QKV, compressor={"id": "zlib"}),
        r"does not decode to its 65536 bytes",
    ),
    "decompression bomb": (
        lambda f: bomb(f, zlib.compress(bytes(64 << 20), 9), "zlib"),
        r"does not decode to its 65536 bytes",
    ),
    "blosc bomb": (
        lambda f: bomb(f, numcodecs.blosc.compress(bytes(64 << 20), b"zstd", 9, 1), "blosc"),
        r"does not decode to its 65536 bytes",
    ),
    "lz4 bomb": (
        lambda f: bomb(f, (1 << 31).to_bytes(4, "little") + b"\xff" * 100, "lz4"),
        "does not decode to its 65536 bytes",
    ),
}


@pytest.mark.parametrize("name", FOLDER_DAMAGE)
def test_a_damaged_checkpoint(name: str, tmp_path: Path) -> None:
    damage, message = FOLDER_DAMAGE[name]
    folder = unpack(tmp_path / "in")
    damage(folder)
    refused(folder, message, tmp_path)


CONFIG_DAMAGE = {
    "not YAML": ("num_layers: 4", "num_layers: [", "not plain YAML"),
    "no layers": ("num_layers: 4\n", "", "num_layers: expected a positive integer, got None"),
    "text": ("num_layers: 4", "num_layers: many", "num_layers: expected a positive integer"),
    "zero": ("hidden_size: 128", "hidden_size: 0", "hidden_size: expected a positive integer"),
    "groups": ("num_query_groups: 8", "num_query_groups: 5", "5 does not divide the 16 heads"),
    "activation": ("squared-relu", "swiglu", "activation: 'swiglu'"),
    "tied": (
        "output_weights: false",
        "output_weights: true",
        "share_embeddings_and_output_weights: True",
    ),
    "rotary": ("rotary_percentage: 0.5", "rotary_percentage: 0.3", "is no even width"),
    "ffn": ("ffn_hidden_size: 512", "ffn_hidden_size: ${add:1}", "ffn_hidden_size: expected"),
    "no tokenizer": ("nemo:", "", r"tokenizer\.model: no nemo:<file>"),
}


@pytest.mark.parametrize("name", CONFIG_DAMAGE)
def test_a_configuration_that_makes_no_sense(name: str, tmp_path: Path) -> None:
    old, new, message = CONFIG_DAMAGE[name]
    folder = edit_config(unpack(tmp_path / "in"), lambda text: text.replace(old, new))
    refused(folder, message, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ffn_hidden_size: 512", "ffn_hidden_size: ${multiply:4, ${.hidden_size}}"),
        ("kv_channels: null", "kv_channels: 8"),
        ("max_position_embeddings: 256\n", ""),
        ("rotary_percentage: 0.5", "rotary_percentage: 0.5\nrotary_base: 10000"),
        ("\n  model: nemo:", "\n  other: nemo:"),
        ("\n  tokenizer_model: nemo:", "\n  other: nemo:"),
        ("normalization: layernorm1p", "normalization: layernorm"),
        ("layernorm_zero_centered_gamma: true", "layernorm_zero_centered_gamma: false"),
    ],
)
def test_the_same_configuration_said_otherwise(old: str, new: str, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    assert old in (folder / "model_config.yaml").read_text()
    expected = convert(folder, tmp_path / "expected", Options(Parallel(2, 1)))
    edit_config(folder, lambda text: text.replace(old, new))
    assert convert(folder, tmp_path / "out", Options(Parallel(2, 1))).files == expected.files


NOT_A_NEMO = {
    "text": (b"hello", "not a .nemo: neither a folder nor a whole tar"),
    "nothing": (b"", "not a .nemo"),
}


@pytest.mark.parametrize("name", NOT_A_NEMO)
def test_not_a_nemo(name: str, tmp_path: Path) -> None:
    content, message = NOT_A_NEMO[name]
    (tmp_path / "model.nemo").write_bytes(content)
    refused(tmp_path / "model.nemo", message, tmp_path)


def test_no_such_file(tmp_path: Path) -> None:
    refused(tmp_path / "model.nemo", "cannot read: No such file", tmp_path)


def test_an_output_that_holds_something_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(NemotronError, match="not an empty folder"):
        convert(NEMO, tmp_path / "out", Options(Parallel(2, 1)))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_empty_output_folder_and_a_killed_run_are_taken_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "rank0.safetensors").write_text("half")
    convert(NEMO, tmp_path / "out", Options(Parallel(1, 1)))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("tp", "pp", "message"),
    [
        (3, 1, "TP 3 does not fit 16 heads over 8 KV heads .*: use one of 1, 2, 4, 8, 16"),
        (32, 1, "TP 32 does not fit"),
        (1, 5, "PP 5 does not fit 4 layers .*: use 1 to 4"),
    ],
)
def test_a_split_that_does_not_fit(tp: int, pp: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(NemotronError, match=message):
        convert(NEMO, tmp_path / "out", Options(Parallel(tp, pp)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "line"),
    [
        (["convert", __file__, "-o", "out"], 1, r"nemotron: not a \.nemo"),
        (["convert", str(NEMO), "-o", "out", "--tp", "3"], 1, "nemotron: TP 3 does not fit"),
        (["convert", str(NEMO), "-o", "out", "--tp", "0"], 2, "--tp"),
        (["convert", str(NEMO)], 2, "--output"),
    ],
)
def test_the_command_line_fails_with_one_line(
    arguments: list[str], exit_code: int, line: str, tmp_path: Path
) -> None:
    command = [str(Path(sys.executable).with_name("nemotron")), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == exit_code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if exit_code == 1:
        assert len(done.stderr.splitlines()) == 1
    assert re.search(line, done.stderr)
    assert list(tmp_path.iterdir()) == []
