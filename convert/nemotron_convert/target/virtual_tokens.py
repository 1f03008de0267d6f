"""The file with the vectors that a P-tuning puts in front of every prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemotron_core.errors import NemotronError

FILE_NAME = "virtual_tokens.safetensors"
"""Name of the file in a checkpoint. It has one tensor, `vectors` [virtual tokens, hidden size]."""


def write_virtual_tokens(folder: Path, vectors: NDArray[np.float32]) -> None:
    """Write vectors [virtual tokens, hidden size]. Raises `NemotronError` if it cannot."""
    from safetensors.numpy import save  # noqa: PLC0415  # most conversions have none

    path = folder / FILE_NAME
    try:
        path.write_bytes(save({"vectors": np.ascontiguousarray(vectors, np.float32)}))
    except OSError as error:
        raise NemotronError(f"cannot write: {error.strerror}", where=path) from error


def read_virtual_tokens(folder: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the vectors, F32 of this shape. Raises `NemotronError` if they are not there."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    path = folder / FILE_NAME
    try:
        with safe_open(path, "numpy") as file:
            vectors: NDArray[np.float32] = file.get_tensor("vectors")
    except (OSError, SafetensorError) as error:
        raise NemotronError(
            f"cannot be read: {error}", where=path, remedy="convert again"
        ) from error
    if vectors.dtype != np.float32 or vectors.shape != shape:
        raise NemotronError(
            f"the vectors are {vectors.dtype} {list(vectors.shape)}, not float32 {list(shape)}",
            where=path,
            remedy="convert again",
        )
    return vectors
