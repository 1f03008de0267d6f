"""The largest magnitude of every linear layer's weight, which its FP8 scale is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from nemotron_convert.source.arrays import BF16_BYTES, StoredArray
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.copying import EXPONENT
from nemotron_convert.target.fp8 import amax_bits, from_bits
from nemotron_convert.team import Team
from nemotron_convert.tensor_map import LINEARS
from nemotron_core.errors import NemotronError
from nemotron_core.progress import byte_progress

Amaxes = dict[tuple[str, int], float]
"""By source tensor and layer."""


def weight_amaxes(source: Source, jobs: int, team: Team) -> Amaxes:
    """Read every linear layer's weight, each process of the team its share.

    NemotronError for NaN and Inf, which no scale fits.
    """
    keys = [(name, layer) for layer in range(source.config.num_layers) for name in LINEARS]
    mine = keys[team.rank :: team.size]
    total = sum(source.tensors[name].layer_bytes for name, _ in mine)
    with (
        byte_progress("weight scales", total, shown=team.leads) as report,
        ThreadPoolExecutor(1 if source.archive.sequential else jobs) as pool,
    ):
        found = _find(source, mine, pool, report)
    return {key: value for part in team.gather(found) for key, value in part.items()}


def _find(
    source: Source,
    keys: Sequence[tuple[str, int]],
    pool: ThreadPoolExecutor,
    report: Callable[[int], None],
) -> Amaxes:
    def find(key: tuple[str, int]) -> float:
        return _amax(source.tensors[key[0]], key[1], report)

    try:
        return dict(zip(keys, pool.map(find, keys), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _amax(array: StoredArray, layer: int, report: Callable[[int], None]) -> float:
    bits = 0
    for chunk in array.of_layer(layer):
        for _, band in array.bands(chunk):
            bits = max(bits, amax_bits(band))
            report(band.size * BF16_BYTES)
    check_finite(array, layer, bits)
    return from_bits(bits)


def check_finite(array: StoredArray, layer: int, bits: int) -> None:
    """NemotronError if these bits of a largest magnitude are those of NaN or Inf."""
    if bits >= EXPONENT:
        raise NemotronError(
            f"tensor {array.name}, layer {layer} holds NaN or Inf, which has no FP8 scale",
            where=array.archive.path,
            remedy="copy the checkpoint again, or convert it to BF16",
        )
