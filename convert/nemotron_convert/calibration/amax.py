"""The largest magnitude (amax) of every linear layer's weight, from which its FP8 scale is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from nemotron_convert.source.arrays import StoredArray
from nemotron_convert.source.nemo import Source
from nemotron_convert.source.number_types import BF16_BYTES
from nemotron_convert.target.fp8 import amax_bits, bf16_from_bits
from nemotron_convert.target.ramp import MOST_THREADS
from nemotron_convert.team import Team
from nemotron_convert.tensor_map import LINEARS
from nemotron_core.errors import NemotronError
from nemotron_core.progress import byte_progress

Amaxes = dict[tuple[str, int], float]
"""Largest magnitudes by source tensor and layer."""


def weight_amaxes(source: Source, jobs: int | None, team: Team) -> Amaxes:
    """Return the amax of every linear layer's weight, on every process.

    The processes of `team` divide the weights among them and read them with `jobs` threads each.
    Raises `NemotronError` if a weight holds NaN or Inf, for which no scale exists.
    """
    keys = [(name, layer) for layer in range(source.config.num_layers) for name in LINEARS]
    own_keys = keys[team.rank :: team.size]
    total = sum(source.tensors[name].layer_bytes for name, _ in own_keys)
    with (
        byte_progress("weight scales", total, shown=team.is_leader) as report,
        ThreadPoolExecutor(1 if source.archive.sequential else jobs or MOST_THREADS) as pool,
    ):

        def read_amax(key: tuple[str, int]) -> float:
            return _amax(source.tensors[key[0]], key[1], report)

        try:
            amaxes = dict(zip(own_keys, pool.map(read_amax, own_keys), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
    return {key: amax for part in team.gather(amaxes) for key, amax in part.items()}


def _amax(array: StoredArray, layer: int, report: Callable[[int], None]) -> float:
    bits = 0
    for chunk in array.layer_chunks(layer):
        for _, band in array.read_bands(chunk):
            bits = max(bits, amax_bits(band))
            report(band.size * BF16_BYTES)
    amax = bf16_from_bits(bits)
    check_finite(array, layer, amax)
    return amax


def check_finite(array: StoredArray, layer: int, amax: float) -> None:
    """Raise `NemotronError` if a layer's amax is NaN or Inf."""
    if not math.isfinite(amax):
        raise NemotronError(
            f"tensor {array.name}, layer {layer} holds NaN or Inf, which has no FP8 scale",
            where=array.archive.path,
            remedy="copy the checkpoint again, or convert it to BF16",
        )
