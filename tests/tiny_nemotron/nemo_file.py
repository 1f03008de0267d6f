"""The committed `.nemo` of the tiny model, read with tarfile only."""

from __future__ import annotations

import tarfile
from pathlib import Path

NEMO = Path(__file__).with_name("tiny_nemotron.nemo")


def read_tokenizer(nemo: Path = NEMO) -> bytes:
    """Return the serialized SentencePiece model in a `.nemo`."""
    (model,) = (data for name, data in read_members(nemo).items() if name.endswith(".model"))
    return model


def read_members(nemo: Path) -> dict[str, bytes]:
    with tarfile.open(nemo) as tar:
        return {
            member.name.removeprefix("./"): file.read()
            for member in tar
            if (file := tar.extractfile(member))
        }
