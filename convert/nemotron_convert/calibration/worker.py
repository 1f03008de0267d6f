"""One device that computes its part of the calibration sequences, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron_convert.calibration.decoder import RotaryEmbedding, run_layer
from nemotron_convert.calibration.devices import current
from nemotron_convert.calibration.hidden_states import HiddenStates
from nemotron_convert.calibration.layer_weights import ResidentLayer
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig

INPUTS = {
    "attention.qkv": "normed",
    "attention.dense": "attended",
    "mlp.fc": "post_normed",
    "mlp.proj": "squared",
}
"""The result of a `LayerTrace` that is the input of each linear layer."""
KEY, VALUE = "cached_key", "value"
"""The results of a `LayerTrace` that the KV cache holds."""
OBSERVED = {*INPUTS.values(), KEY, VALUE}

Magnitudes = Mapping[str, float]
"""Largest magnitudes in a layer by the result's name in `OBSERVED`, or by `weight_of(linear)`."""


def weight_of(linear: str) -> str:
    """Return the name of a linear layer's weight in `Magnitudes`."""
    return f"the weight of {linear}"


@dataclass(frozen=True)
class Batch:
    """Whole sequences that go through a layer at once: tokens `first` to `end`."""

    first: int
    lengths: tuple[int, ...]
    rotary: RotaryEmbedding

    @property
    def end(self) -> int:
        return self.first + sum(self.lengths)


class Worker:
    """Computes layers on one device for consecutive sequences, the first at token `first`."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        states: HiddenStates,
        first: int,
        lengths: Sequence[int],
        batch_tokens: int,
    ) -> None:
        self.first, self.end = first, first + sum(lengths)
        self._device, self._states = device, states
        self._batches = [
            Batch(start, tuple(batch), RotaryEmbedding(config, batch).to(device))
            for start, batch in batches(first, lengths, batch_tokens)
        ]

    def run(self, weights: ResidentLayer, report: Callable[[int], None]) -> Magnitudes:
        """Compute one layer for all sequences and return the largest magnitudes.

        `report` is called with the number of tokens of each batch. When this returns, the device
        has computed everything. Raises `NemotronError` if the device's memory is used up.
        """
        try:
            with current(self._device):
                names, largest = self.start(weights, report)
                return dict(zip(names, largest.tolist(), strict=True))  # waits, once in a layer
        except torch.cuda.OutOfMemoryError as error:
            raise NemotronError(
                f"{self._device} has no memory left: {str(error).partition('.')[0]}",
                where="--devices",
                remedy="end other programs on it, or name another device",
            ) from error

    def start(
        self, weights: ResidentLayer, report: Callable[[int], None] = lambda tokens: None
    ) -> tuple[list[str], Tensor]:
        """Have the device compute the layer; return names and largest magnitudes [n] on it.

        Nothing in here waits for a GPU, so that it never waits for Python: each copy to the CPU
        would stop it until the next batch is prepared.
        """
        largest: dict[str, Tensor] = {}

        def observe(name: str, values: Tensor) -> None:
            if name in OBSERVED:
                amax = amax_of(values)
                largest[name] = torch.maximum(largest[name], amax) if name in largest else amax

        with torch.inference_mode():
            for batch in self._batches:
                states = self._states.read(batch.first, batch.end)
                hidden = states.to(self._device, non_blocking=True).float()
                out = run_layer(weights, hidden, batch.rotary, batch.lengths, observe)
                self._states.write(batch.first, out.to(torch.bfloat16))
                report(batch.end - batch.first)
            for name, matrix in weights.matrices.items():
                largest[weight_of(name)] = amax_of(matrix)
            return list(largest), torch.stack(list(largest.values()))


def amax_of(values: Tensor) -> Tensor:
    """Return the largest magnitude [] of values, rounded to BF16, in F32; NaN if one is NaN."""
    low, high = values.aminmax()
    return torch.maximum(-low, high).to(torch.bfloat16).float()


def batches(
    first: int, lengths: Sequence[int], batch_tokens: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield (first token, sequence lengths) of batches of at most `batch_tokens`.

    A longer sequence is a batch of its own.

    >>> list(batches(10, [3, 2, 4, 9], 6))
    [(10, [3, 2]), (15, [4]), (19, [9])]
    """
    batch: list[int] = []
    for length in lengths:
        if batch and sum(batch) + length > batch_tokens:
            yield first, batch
            first, batch = first + sum(batch), []
        batch.append(length)
    if batch:
        yield first, batch
