"""The tiny reward model's `.nemo`: that of the tiny Nemotron with a head in F32."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.tiny_nemotron.nemo_file import NEMO, read_members

HEAD = Path(__file__).with_name("head.npz")
TP = 8
SETTINGS = """\
reward_model_type: regression
force_head_dtype: float32
output_sequence: false
use_avg_pool: false
regression:
  num_attributes: 9
  merge_attributes: false
  attribute_weights: null
  loss_mask_val: -100
"""


def load_head() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the head's weight [9, hidden size] and bias [9]."""
    with np.load(HEAD) as arrays:
        return arrays["weight"], arrays["bias"]


def pack_reward(path: Path) -> Path:
    """Write the `.nemo` as eight ranks would have saved it: the head's columns are split."""
    weight, bias = load_head()
    members = read_members(NEMO)
    members["model_config.yaml"] += SETTINGS.encode()
    columns = weight.shape[1] // TP
    members |= _array("weight", weight.shape, (len(weight), columns))
    for rank in range(TP):
        part = np.ascontiguousarray(weight[:, rank * columns : (rank + 1) * columns])
        members[f"model_weights/model.rm_head.weight/0.{rank}"] = part.tobytes()
    members |= _array("bias", bias.shape, bias.shape)
    members["model_weights/model.rm_head.bias/0"] = bias.tobytes()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in sorted(members.items()):
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _array(name: str, shape: tuple[int, ...], chunks: tuple[int, ...]) -> dict[str, bytes]:
    meta = {"zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": "<f4", "order": "C"}
    rest = {"compressor": None, "filters": None, "fill_value": None}
    return {f"model_weights/model.rm_head.{name}/.zarray": json.dumps(meta | rest).encode()}
