"""`calibration.json`: the largest inputs of every linear layer, measured on some texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nemotron_convert.calibration.amax import Amaxes
from nemotron_convert.calibration.options import BUILT_IN_NAME, CALIBRATION_NAME
from nemotron_convert.target.fp8 import LinearScale, Scales, scale_of
from nemotron_convert.target.json_files import parse_json
from nemotron_convert.target.manifest import CalibrationEntry
from nemotron_convert.tensor_map import LINEARS
from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_core.model_config import ModelConfig

CALIBRATION_LIMIT = 64 << 20
"""Largest size in bytes of a `calibration.json` that is read."""
KV_SCALE_FLOOR = np.float32(1)
"""Smallest scale of the KV cache, as in ModelOpt: at an amax below 448 nothing overflows at scale
1, and a finer scale would only move the small numbers."""

Magnitude = Annotated[float, Field(ge=0, le=float(np.finfo(np.float32).max), allow_inf_nan=False)]
"""A largest magnitude, which fits in F32 because its scale does."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LinearAmax(_Strict):
    """Largest magnitudes of one linear layer."""

    input: Magnitude
    weight: Magnitude


class LayerAmax(_Strict):
    """Largest magnitudes of one decoder layer."""

    linears: dict[str, LinearAmax]
    """Keyed by TensorRT-LLM's names: `attention.qkv`, `attention.dense`, `mlp.fc`, `mlp.proj`."""
    key: Magnitude
    """Largest magnitude of the keys as they are cached, after the rotary embedding."""
    value: Magnitude


class Calibration(_Strict):
    """Result of one calibration."""

    format_version: Literal[1] = 1
    model: str
    """Name of the `.nemo`."""
    source: str
    """Digest of the `.nemo`'s files by name, size and time; the weights' amax belong to them."""
    data: str
    """Name of the calibration data's file."""
    data_sha256: str
    """SHA-256 (hex) of the calibration data's token ids."""
    sequences: int
    """Number of sequences in the calibration data."""
    tokens: int
    """Number of tokens in the calibration data."""
    layers: list[LayerAmax]

    def write(self, path: Path) -> None:
        """Write `calibration.json`. Raises `NemotronError` if the file cannot be written."""
        write_atomically(path, json.dumps(self.model_dump(), indent=1) + "\n")

    @property
    def weight_amaxes(self) -> Amaxes:
        """Largest magnitudes of the weights; valid only for the files that `source` names."""
        return {
            (source, layer): amax.linears[name].weight
            for layer, amax in enumerate(self.layers)
            for source, name in LINEARS.items()
        }

    def scales(self, weights: Amaxes, *, fp8_kv_cache: bool) -> Scales:
        """Return F32 scales, amax / 448, of these inputs and of weights with the given amax.

        The KV cache has one scale per layer for keys and values, at least `KV_SCALE_FLOOR`.
        """
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


def calibration_entry(folder: Path) -> CalibrationEntry | None:
    """Return what a manifest says about the `calibration.json` in a folder, if there is one.

    Raises `NemotronError` if it is not valid.
    """
    path = folder / CALIBRATION_NAME
    if not path.exists():
        return None
    calibration = parse_json(Calibration, path.read_bytes(), path)
    return CalibrationEntry(
        data=calibration.data,
        is_built_in=calibration.data == BUILT_IN_NAME,
        sequences=calibration.sequences,
        tokens=calibration.tokens,
    )


def read_calibration(path: Path, config: ModelConfig) -> Calibration:
    """Read a `calibration.json` for a model of this shape.

    Raises `NemotronError` if the file cannot be read, is not valid or is of another shape.
    """
    try:
        if path.stat().st_size > CALIBRATION_LIMIT:
            raise NemotronError(f"larger than {CALIBRATION_LIMIT:,} bytes", where=path)
        data = path.read_bytes()
    except OSError as error:
        raise NemotronError(f"cannot read: {error.strerror}", where=path) from error
    remedy = "name a calibration.json that this converter wrote"
    calibration = parse_json(Calibration, data, path, remedy=remedy)
    if len(calibration.layers) != config.num_layers:
        raise NemotronError(
            f"it is of a model with {len(calibration.layers)} layers, this one has "
            f"{config.num_layers}",
            where=path,
        )
    for number, layer in enumerate(calibration.layers):
        if set(layer.linears) != set(LINEARS.values()):
            raise NemotronError(f"layers.{number}.linears: not those of this model", where=path)
        for name, amax in layer.linears.items():
            if not amax.input:
                raise NemotronError(
                    f"layers.{number}.linears.{name}.input: 0, so nothing has passed through",
                    where=path,
                )
    return calibration
