"""Lines of an output, for tests of the file itself."""

from __future__ import annotations

import gzip
import hashlib
import io
import json

import numpy as np
import zstandard

from nemotron_data.batch.results import KEY, Keys, ResultFile
from nemotron_data.rows.compression import ZstdFile


def key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def line(name: str, text: str = "Tee – お茶") -> bytes:
    content = {"id": f"batch_req_{key(name).hex()}", "custom_id": name, "text": text}
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def ids(*names: str) -> list[bytes]:
    return [key(name) for name in names]


def loaded(results: ResultFile) -> list[bytes]:
    keys = results.load()
    return [keys[index : index + 1].tobytes() for index in range(len(keys))]


def keys_of(*names: str) -> Keys:
    return np.frombuffer(b"".join(ids(*names)), KEY)


def decompress(data: bytes) -> bytes:
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    return ZstdFile(io.BytesIO(data)).read()


def compress(name: str, data: bytes) -> bytes:
    return zstandard.compress(data) if name.endswith(".zst") else gzip.compress(data)


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now
