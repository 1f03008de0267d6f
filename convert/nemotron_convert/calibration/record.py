"""`calibration.json`: the largest inputs of every linear layer, seen on some texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemotron_convert.calibration.amax import Amaxes
from nemotron_convert.target.fp8 import LinearScale, Scales, scale_of
from nemotron_convert.tensor_map import LINEARS
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig

CALIBRATION_NAME = "calibration.json"
CALIBRATION_LIMIT = 64 << 20
KV_SCALE_FLOOR = np.float32(1)
"""As ModelOpt's: below 448 nothing overflows, and a finer scale would only move the small ones."""

Magnitude = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LinearAmax(_Strict):
    """Largest magnitudes of one linear layer."""

    input: Magnitude
    weight: Magnitude


class LayerAmax(_Strict):
    """Largest magnitudes of one decoder layer."""

    linears: dict[str, LinearAmax]
    """By TensorRT-LLM's short names: `attention.qkv`, `attention.dense`, `mlp.fc`, `mlp.proj`."""
    key: Magnitude
    """Of the keys as they are cached: after the rotary embedding."""
    value: Magnitude


class Calibration(_Strict):
    """What one calibration has found."""

    format_version: Literal[1] = 1
    model: str
    """Name of the `.nemo`."""
    source: str
    """Digest of the `.nemo`'s files by name, size and time: the weights' amax are of these."""
    data: str
    """What the model was shown."""
    data_sha256: str
    """SHA-256 (hex) of its token ids."""
    sequences: int
    tokens: int
    layers: list[LayerAmax]

    def write(self, path: Path) -> None:
        text = json.dumps(self.model_dump(), indent=1) + "\n"
        path.write_text(text, encoding="utf-8")

    @property
    def weight_amaxes(self) -> Amaxes:
        """Only for the very files that `source` names."""
        return {
            (source, layer): amax.linears[name].weight
            for layer, amax in enumerate(self.layers)
            for source, name in LINEARS.items()
        }

    def scales(self, weights: Amaxes, *, fp8_kv_cache: bool) -> Scales:
        """F32 scales for FP8, with these amax of the weights."""
        linears = {
            (source, layer): LinearScale(
                weight=scale_of(weights[source, layer]), input=scale_of(amax.linears[name].input)
            )
            for layer, amax in enumerate(self.layers)
            for source, name in LINEARS.items()
        }
        kv_cache = {
            layer: max(scale_of(amax.key), scale_of(amax.value), KV_SCALE_FLOOR)
            for layer, amax in enumerate(self.layers)
        }
        return Scales(linears, kv_cache if fp8_kv_cache else {})


def read_calibration(path: Path, config: ModelConfig) -> Calibration:
    """A calibration of a model of this shape; NemotronError says what is wrong with the file."""
    try:
        if path.stat().st_size > CALIBRATION_LIMIT:
            raise NemotronError(f"larger than {CALIBRATION_LIMIT:,} bytes", where=path)
        found = Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "file"
        raise NemotronError(
            f"{key}: {first['msg']}", where=path, remedy="name a calibration.json of this converter"
        ) from error
    if len(found.layers) != config.num_layers:
        raise NemotronError(
            f"it is of a model with {len(found.layers)} layers, this one has {config.num_layers}",
            where=path,
        )
    for number, layer in enumerate(found.layers):
        if set(layer.linears) != set(LINEARS.values()):
            raise NemotronError(f"layers.{number}.linears: not those of this model", where=path)
        for name, amax in layer.linears.items():
            if not amax.input:
                raise NemotronError(
                    f"layers.{number}.linears.{name}.input: 0, so nothing has passed through",
                    where=path,
                )
    return found
