"""Mutations of checkpoints that know their structure: members, JSON, YAML, pickles, zip, tar.

All choices come from the `Random` argument, so a seed reproduces them.
"""

from __future__ import annotations

import gzip
import io
import json
import pickletools
import tarfile
import zipfile
from random import Random
from typing import Any

Members = dict[str, bytes]

NUMBERS = (
    0, 1, -1, 2, 3, 127, 128, 255, 256, 65535, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 63,
    -(1 << 63), 1 << 70, 10**400,
)  # fmt: skip
JSON_VALUES: tuple[Any, ...] = (
    *NUMBERS, 1.5, 1e400, True, False, None, "", "x", "bfloat16", "C", [], {}, [[]], [0], [-1],
    [1 << 39, 1 << 39], {"id": "zlib"}, {"id": "blosc"}, {"id": "zstd"}, {"id": 7}, "\ud800",
)  # fmt: skip
YAML_VALUES = (
    *map(str, NUMBERS), "1e400", ".nan", ".inf", "-.inf", "true", "null", "''", "[]", "{}", "[[",
    "*a", "&a [*a]", "!!int x", "!!float ''", "!!timestamp x", "!!binary '*'", "2020-99-99", "0x_",
    "!!python/name:os.system", "1:2:3", "? [a]", "<<: {a: 1}", "nemo:../../x", "nemo:",
    "9" * 5000, "\x07",
)  # fmt: skip
NAMES = (
    "../x", "/x", "a/../../x", "", ".", "A", "model_weights", "model_config.yaml", "x\n", "\x1b[2J",
    "context/model.yaml", "model_weights.ckpt", "mp_rank_00/model_weights.ckpt", "é", "n" * 300,
    "tp_rank_99999999999_pp_rank_99999999999/model_weights.ckpt", "model_weights/.metadata",
)  # fmt: skip
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


def mutated(random: Random, members: Members) -> bytes:
    """Return a `.nemo` with up to three faults in its members, and sometimes one in the tar."""
    members = dict(members)
    names: list[tuple[str, str]] = []
    if random.random() < 0.85:
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            _mutate_member(random, members)
    if random.random() < 0.1:
        names = [(random.choice(sorted(members)), random.choice(NAMES))]
    data = pack(members, names)
    if random.random() < 0.15:
        data = _mutate_tar(random, data)
    if random.random() < 0.03:
        data = gzip.compress(data, 1)
        if random.random() < 0.7:
            data = _mutate_bytes(random, data)
    return data


def pack(members: Members, names: list[tuple[str, str]] | None = None) -> bytes:
    """Return a tar of the members; `names` renames some, also to names that exist already."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(dict(names or []).get(name, name))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _mutate_member(random: Random, members: Members) -> None:
    # Metadata are worth more faults than the many chunks.
    metadata = [name for name in members if not name.rpartition("/")[2][:1].isdigit()]
    name = random.choice(metadata if metadata and random.random() < 0.8 else sorted(members))
    kind = random.random()
    if kind < 0.06:
        del members[name]
        if not members:
            members[name] = b""
    elif kind < 0.12:
        members[random.choice((name.upper(), name + "/x", name + "x"))] = members[name]
    elif kind < 0.16:
        members[name] = members[random.choice(sorted(members))]
    elif kind < 0.2:
        members[name] = LFS
    elif kind < 0.75:
        members[name] = _mutate_structure(random, name, members[name])
    else:
        members[name] = _mutate_bytes(random, members[name])


def _mutate_structure(random: Random, name: str, data: bytes) -> bytes:
    try:
        if name.endswith((".zarray", ".json")):
            return _mutate_json(random, data)
        if name.endswith(".yaml"):
            return _mutate_yaml(random, data)
        if name.endswith(".metadata"):
            return _mutate_pickle(random, data)
        if name.endswith(".ckpt"):
            return _mutate_zip(random, data)
        if name.endswith(".distcp"):
            return _mutate_zip_in_place(random, data)
    except (ValueError, KeyError, IndexError, RecursionError, zipfile.BadZipFile):
        pass  # an earlier fault result it impossible to parse
    return _mutate_bytes(random, data)


def _mutate_bytes(random: Random, data: bytes) -> bytes:
    result = bytearray(data)
    kind = random.randrange(6)
    place = random.randrange(len(result) + 1)
    if kind == 0:
        return bytes(result[:place])
    if kind == 1:
        return bytes(
            result[:place] + random.randbytes(random.choice((1, 8, 1000))) + result[place:]
        )
    if kind == 2:
        return bytes(result[:place] + result[place + random.choice((1, 2, 100)) :])
    if kind == 3:
        return bytes(len(result))
    for _ in range(random.choice((1, 1, 2, 8))):
        if result:
            result[random.randrange(len(result))] = _byte(random)
    return bytes(result)


def _byte(random: Random) -> int:
    return random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _mutate_json(random: Random, data: bytes) -> bytes:
    value = json.loads(data)
    if not isinstance(value, dict) or random.random() < 0.05:
        return b"[" * random.choice((10, 30_000))
    key = random.choice(sorted(value))
    inner = value[key]
    if random.random() < 0.1:
        del value[key]
    elif isinstance(inner, list) and inner and random.random() < 0.6:
        inner[random.randrange(len(inner))] = random.choice(JSON_VALUES)
    else:
        value[key] = random.choice(JSON_VALUES)
    return json.dumps(value).encode()


def _mutate_yaml(random: Random, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    place = random.randrange(len(lines))
    key, _, _ = lines[place].partition(":")
    kind = random.random()
    if kind < 0.15:
        del lines[place]
    elif kind < 0.8:
        lines[place] = f"{key}: {random.choice(YAML_VALUES)}"
    else:
        lines.insert(place, random.choice(YAML_VALUES))
    return "\n".join(lines).encode()


def _mutate_pickle(random: Random, data: bytes) -> bytes:
    """Remove, repeat, exchange or insert whole opcodes, so that most of the pickle still parses."""
    starts = [position for _, _, position in pickletools.genops(data) if position is not None]
    codes = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randrange(len(codes))
        kind = random.randrange(5)
        if kind == 0:
            del codes[place]
        elif kind == 1:
            codes.insert(place, codes[place])
        elif kind == 2:
            other = random.randrange(len(codes))
            codes[place], codes[other] = codes[other], codes[place]
        elif kind == 3:
            codes.insert(place, random.choice(OPCODES))
        else:
            codes[place] = random.choice(OPCODES)
    return b"".join(codes)


OPCODES = (
    b"0", b"1", b"2", b"(", b")", b"]", b"}", b"N", b"t", b"l", b"d", b"e", b"u", b"s", b"a", b"b",
    b"R", b"Q", b"\x81", b"\x85", b"\x86", b"\x87", b"\x88", b"\x8f", b"\x90", b"\x92", b"\x93",
    b"\x94", b"J\xff\xff\xff\xff", b"K\x00", b"M\xff\xff", b"h\x00", b"h\x05", b"q\x00",
    b"j\0\0\0\x7f", b"r\xff\xff\xff\x7f", b"\x8a\x08" + b"\x7f" * 8, b"\x8a\x09" + b"\xff" * 9,
    b"G" + bytes(8), b"X\0\0\0\0", b"X\x01\0\0\0a", b"cos\nsystem\n", b"ctorch\nSize\n",
    b"ctorch\nBFloat16Storage\n", b"2\x86" * 60, b"}K\x00" + b"2\x86" * 60 + b"Ns", b"I9\n",
    b"L9L\n", b"F1e400\n", b".",
)  # fmt: skip


def _mutate_zip(random: Random, data: bytes) -> bytes:
    """Mutate the pickle in a file of `torch.save`, and rarely another entry."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("/data.pkl"):
                content = _mutate_pickle(random, content)
            elif random.random() < 0.01:
                content = _mutate_bytes(random, content)
            new.writestr(entry.filename, content)
    return result.getvalue()


ZIP_MARKS = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"data.pkl")


def _mutate_zip_in_place(random: Random, data: bytes) -> bytes:
    """Change bytes near a zip's signatures, where its sizes and offsets are, and in the pickle."""
    result = bytearray(data)
    for _ in range(random.choice((1, 2, 4))):
        signature = random.choice(ZIP_MARKS)
        position = data.find(signature, random.randrange(len(data)))
        if position >= 0:
            place = min(position + random.randrange(60), len(result) - 1)
            result[place] = _byte(random)
    return bytes(result)


def _mutate_tar(random: Random, data: bytes) -> bytes:
    """Change a field of a member's header, and correct its checksum most of the time."""
    result = bytearray(data)
    headers = [
        start
        for start in range(0, len(result) - 511, 512)
        if result[start + 257 : start + 262] == b"ustar"
    ]
    if not headers:
        return _mutate_bytes(random, data)
    start = random.choice(headers)
    offset, length = random.choice(
        ((0, 100), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155))
    )
    fields = (
        bytes(length),
        b"\x80" + b"\xff" * (length - 1),
        b"\xff" * length,
        b"7" * length,
        random.randbytes(length),
    )
    kind = bytes([random.choice(b"0123456789gxLKSVDX")])
    field = kind if length == 1 else random.choice(fields)
    result[start + offset : start + offset + length] = field
    if random.random() < 0.8:
        result[start + 148 : start + 156] = b" " * 8
        result[start + 148 : start + 156] = b"%06o\0 " % sum(result[start : start + 512])
    return bytes(result)
