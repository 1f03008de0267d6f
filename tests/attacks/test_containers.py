"""Hostile tars, gzips and folders."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from nemotron_convert.source import archive
from nemotron_convert.source.archive import Index
from nemotron_core.errors import NemotronError
from tests.attacks.guard import Attack, Build, try_attack
from tests.convert.nemo import WEIGHTS, pack, unpack

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
NORM = f"{WEIGHTS}/model.decoder.final_layernorm.weight"
EIGHT_GIB = b"\x80" + (8 << 30).to_bytes(11, "big")
NEGATIVE = (-4096).to_bytes(12, "big", signed=True)


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tar(*members: tarfile.TarInfo) -> Build:
    def build(folder: Path) -> Path:
        with tarfile.open(folder / "model.nemo", "w") as file:
            for info in members:
                file.addfile(info, io.BytesIO(b"x" * info.size))
        return folder / "model.nemo"

    return build


def header(name: str, kind: bytes, size: bytes = b"0" * 11 + b"\0") -> bytes:
    """Return a member's header that `tarfile` would not write."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[124:136] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def raw(data: bytes, *, compressed: bool = False) -> Build:
    def build(folder: Path) -> Path:
        (folder / "model.nemo").write_bytes(gzip.compress(data, 1) if compressed else data)
        return folder / "model.nemo"

    return build


def endless_header(folder: Path) -> Path:
    """Write a member's extended header of 256 MiB as a few kilobytes of gzip."""
    size = b"%011o\0" % (256 << 20)
    with gzip.open(folder / "model.nemo", "wb", 1) as file:
        file.write(header("a", b"x", size))
        for _ in range(256):
            file.write(bytes(1 << 20))
    return folder / "model.nemo"


def cut(fraction: float, mode: str) -> Build:
    def build(folder: Path) -> Path:
        whole = pack(unpack(folder / "whole"), folder / "whole.nemo", mode)
        os.truncate(whole, int(whole.stat().st_size * fraction))
        return whole

    return build


def linked(target: str, name: str, *, is_folder: bool = False) -> Build:
    def build(folder: Path) -> Path:
        nemo = unpack(folder / "in")
        (nemo / name).symlink_to(target, target_is_directory=is_folder)
        return nemo

    return build


def piped(folder: Path) -> Path:
    os.mkfifo(unpack(folder / "in") / "pipe")
    return folder / "in"


def pipe_itself(folder: Path) -> Path:
    os.mkfifo(folder / "model.nemo")
    return folder / "model.nemo"


def deep(folder: Path) -> Path:
    path = unpack(folder / "in")
    for _ in range(200):
        path /= "d"
    path.mkdir(parents=True)
    return folder / "in"


def other_case(folder: Path) -> Path:
    nemo = unpack(folder / "in")
    (nemo / "Model_Config.yaml").write_text("num_layers: 1")
    return nemo


def pointer(name: str) -> Build:
    def build(folder: Path) -> Path:
        nemo = unpack(folder / "in")
        (path,) = nemo.glob(name)
        path.write_bytes(LFS_POINTER)
        return nemo

    return build


NOT_PLAIN = "is not a plain file"
LINK = f"'link' {NOT_PLAIN}"
ATTACKS = {
    "tar: absolute name": Attack(
        tar(member("/etc/passwd", size=1)), "'/etc/passwd' points outside"
    ),
    "tar: name with ..": Attack(
        tar(member("a/../../canary", size=1)), r"'a/\.\./\.\./canary' points outside"
    ),
    "tar: symbolic link": Attack(
        tar(member("link", type=tarfile.SYMTYPE, linkname="../canary")), LINK
    ),
    "tar: hard link": Attack(tar(member("link", type=tarfile.LNKTYPE, linkname="../canary")), LINK),
    "tar: device": Attack(tar(member("null", type=tarfile.CHRTYPE)), f"'null' {NOT_PLAIN}"),
    "tar: block device": Attack(tar(member("disk", type=tarfile.BLKTYPE)), f"'disk' {NOT_PLAIN}"),
    "tar: named pipe": Attack(tar(member("pipe", type=tarfile.FIFOTYPE)), f"'pipe' {NOT_PLAIN}"),
    "tar: sparse file": Attack(
        raw(header("hole", b"S", b"%011o\0" % 512) + bytes(2048)), f"'hole' {NOT_PLAIN}"
    ),
    "tar: name twice": Attack(
        tar(member("a", size=1), member("./a", size=1)), "member 'a' appears twice"
    ),
    "tar: names that differ in case": Attack(
        tar(member("x/A", size=1), member("x/a", size=1)), "'x/A' and 'x/a' differ only in case"
    ),
    "tar: name with escape codes": Attack(
        tar(member("\x1b[2Jgone", size=1)), r"'\\x1b\[2Jgone' is no name for a file"
    ),
    "tar: name of a megabyte": Attack(tar(member("n" * 900_000, size=1)), "is no name for a file"),
    "tar: negative size": Attack(raw(header("back", b"0", NEGATIVE)), "'back' has a size of -"),
    "tar: negative size of an extended header": Attack(
        raw(header("back", b"x", NEGATIVE) + bytes(4096)), "header in the tar has more than"
    ),
    "tar: size past the end": Attack(
        raw(header("a", b"0", EIGHT_GIB) + bytes(2048)),
        "a should reach byte|not a whole",
    ),
    "tar: extended headers in each other": Attack(
        raw(header("a", b"x") * 5000 + header("a", b"0") + bytes(1024)),
        r"not a \.nemo",
    ),
    "tar: empty": Attack(tar(), "the tar is empty"),
    "gzip: a header of 256 MiB": Attack(endless_header, "header in the tar has more than 1048576"),
    "gzip: nothing in it": Attack(raw(b"\x1f\x8b\x08\x00"), r"not a \.nemo"),
    "gzip: garbage in it": Attack(raw(b"\x1f\x8b\x08\x00" + b"\xaa" * 3000), r"not a \.nemo"),
    "gzip: cut short": Attack(cut(0.9, "w:gz"), r"not a \.nemo|ends early|cannot decompress"),
    "tar: cut short": Attack(cut(0.5, "w"), "cut short|missing"),
    "folder: symbolic link to a file": Attack(linked("../../canary", "link"), LINK),
    "folder: symbolic link to a folder": Attack(linked("/etc", "link", is_folder=True), LINK),
    "folder: named pipe": Attack(piped, f"'pipe' {NOT_PLAIN}"),
    "folder: deep": Attack(deep, "folders more than 32 deep: 'd/d/"),
    "folder: names that differ in case": Attack(other_case, "differ only in case"),
    "file: named pipe": Attack(pipe_itself, "neither a file nor a folder"),
    "Git-LFS: the .nemo": Attack(raw(LFS_POINTER), r"Git-LFS pointer.*model\.nemo.*git lfs pull"),
    "Git-LFS: a chunk": Attack(pointer(f"{NORM}/0"), "Git-LFS pointer.*final_layernorm.weight/0"),
    "Git-LFS: the configuration": Attack(
        pointer("model_config.yaml"), r"Git-LFS pointer.*model_config\.yaml"
    ),
    "Git-LFS: the tokenizer": Attack(pointer("*.model"), r"Git-LFS pointer.*256k\.model"),
    "Git-LFS: a .zarray": Attack(pointer(f"{NORM}/.zarray"), r"Git-LFS pointer.*\.zarray"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_container(name: str, tmp_path: Path) -> None:
    try_attack(ATTACKS[name], tmp_path)


def test_a_million_members_is_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(archive, "MEMBER_LIMIT", 10)
    index = Index(tmp_path)
    for _ in range(10):
        index.count()
    with pytest.raises(NemotronError, match="more than 10 files and folders"):
        index.count()
