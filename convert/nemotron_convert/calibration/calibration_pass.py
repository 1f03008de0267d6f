"""The calibration pass: all sequences go through one decoder layer before the next is read.

Memory holds one layer and the hidden states, whatever the model's depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nemotron_convert.calibration.decoder import (
    LayerTrace,
    RotaryEmbedding,
    from_words,
    run_layer,
    to_words,
)
from nemotron_convert.calibration.hidden_states import HiddenStates
from nemotron_convert.calibration.layer_weights import ResidentLayer
from nemotron_convert.calibration.options import CalibrationOptions
from nemotron_convert.calibration.record import LayerAmax, LinearAmax
from nemotron_convert.source.nemo import Source
from nemotron_convert.team import Team
from nemotron_convert.tensor_map import EMBEDDING, LINEARS
from nemotron_core.errors import NemotronError
from nemotron_core.progress import byte_progress

BATCH_BYTES = 256 << 20
"""Bytes of a batch's widest intermediate result in BF16, which limits a batch's tokens."""
EMBEDDED_TOKENS = 4096
"""Number of tokens whose embeddings are written at a time."""


class CalibrationPass:
    """One process's part of the calibration: its sequences, layer by layer.

    `sequences` are those of all processes. `folder` keeps the state from which a later run resumes.
    Raises `NemotronError` if the device cannot be used.
    """

    def __init__(
        self,
        source: Source,
        sequences: Sequence[Sequence[int]],
        folder: Path,
        options: CalibrationOptions,
        team: Team,
    ) -> None:
        self._source, self._team = source, team
        self._device = _open_device(options.device, team)
        self._sequences = sequences[team.rank :: team.size]
        self._tokens = sum(map(len, self._sequences))
        self._layer_bytes = sum(source.tensors[name].layer_bytes for name in LINEARS)
        width = source.config.hidden_size
        self._states = HiddenStates(
            folder / f"{team.rank}-of-{team.size}",
            self._tokens,
            width,
            in_memory=self._tokens * width * 2 <= options.memory,
        )

    def run(self) -> list[LayerAmax]:
        """Return each layer's largest magnitudes over the sequences of all processes.

        Raises `NemotronError` if weights or inputs of a linear layer hold NaN or Inf.
        """
        layers = self._resume()
        if not layers:
            self._embed()
        num_layers = self._source.config.num_layers
        total = num_layers * self._layer_bytes
        with byte_progress("calibrating", total, shown=self._team.is_leader) as report:
            report(len(layers) * self._layer_bytes)
            for layer in range(len(layers), num_layers):
                layers.append(_largest(self._team.gather(self._run_layer(layer, report))))
                should_save = self._states.should_save if self._team.is_leader else None
                save = self._team.broadcast(should_save)
                self._states.commit({"layers": [amax.model_dump() for amax in layers]}, save=save)
        return layers

    def _resume(self) -> list[LayerAmax]:
        """Return the layers that an earlier run finished, if all processes agree on them."""
        state = self._states.load()
        layers = [LayerAmax.model_validate(layer) for layer in state["layers"]] if state else []
        return layers if all(other == layers for other in self._team.gather(layers)) else []

    def _embed(self) -> None:
        ids = np.array(list(itertools.chain.from_iterable(self._sequences)), np.int64)
        if not ids.size:
            return
        distinct_ids, indexes = np.unique(ids, return_inverse=True)
        rows = self._source.tensors[EMBEDDING].read_rows(distinct_ids)
        for start in range(0, len(ids), EMBEDDED_TOKENS):
            self._states.write(start, rows[indexes[start : start + EMBEDDED_TOKENS]])
        self._states.commit({"layers": []}, save=False)

    def _run_layer(self, layer: int, report: Callable[[int], None]) -> LayerAmax:
        weights = ResidentLayer(self._source, layer, self._device)
        inputs = dict.fromkeys(LINEARS.values(), 0.0)
        key = value = 0.0
        for first, lengths in self._batches():
            end = first + sum(lengths)
            words = np.ascontiguousarray(self._states.read(first, end))
            hidden = from_words(words).to(self._device).float()
            with torch.inference_mode():
                rotary = RotaryEmbedding(self._source.config, lengths).to(self._device)
                trace = run_layer(weights, hidden, rotary, lengths)
                for name, values in _linear_inputs(trace).items():
                    inputs[name] = max(inputs[name], _amax(values))
                key, value = max(key, _amax(trace.cached_key)), max(value, _amax(trace.value))
            self._states.write(first, to_words(trace.hidden))
            report(self._layer_bytes * (end - first) // self._tokens)
        _check_inputs(inputs, layer)
        linears = {
            name: LinearAmax(input=amax, weight=weights.amaxes[name])
            for name, amax in inputs.items()
        }
        return LayerAmax(linears=linears, key=key, value=value)

    def _batches(self) -> Iterator[tuple[int, list[int]]]:
        """Yield (first token, sequence lengths) of each batch that goes through a layer at once."""
        config = self._source.config
        limit = BATCH_BYTES // (2 * max(config.intermediate_size, config.qkv_rows))
        first, lengths = 0, list[int]()
        for sequence in self._sequences:
            if lengths and sum(lengths) + len(sequence) > limit:
                yield first, lengths
                first, lengths = first + sum(lengths), []
            lengths.append(len(sequence))
        if lengths:
            yield first, lengths


def _open_device(name: str, team: Team) -> torch.device:
    """Return the torch device; `cuda` means the GPU whose number is the rank modulo their count."""
    try:
        device = torch.device(name)
        if name == "cuda" and torch.cuda.is_available():
            device = torch.device("cuda", team.rank % torch.cuda.device_count())
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise NemotronError(
            f"torch {torch.__version__} cannot use the device {name!r}: {reason}",
            where="--device",
            remedy="use cpu, or install a torch for your GPU",
        ) from error
    return device


def _linear_inputs(trace: LayerTrace) -> dict[str, Tensor]:
    return {
        "attention.qkv": trace.normed,
        "attention.dense": trace.attended,
        "mlp.fc": trace.post_normed,
        "mlp.proj": trace.squared,
    }


def _amax(values: Tensor) -> float:
    """Return the largest magnitude, rounded to BF16, the precision in which it is multiplied."""
    return float(values.abs().amax().to(torch.bfloat16))


def _check_inputs(inputs: dict[str, float], layer: int) -> None:
    for name, amax in inputs.items():
        if not np.isfinite(amax):
            raise NemotronError(
                f"layer {layer}: the input of {name} is {amax}",
                remedy="check the .nemo with `nemotron convert --strict`",
            )


def _largest(amaxes: Sequence[LayerAmax]) -> LayerAmax:
    """Return the maxima over the processes, whose weights are all the same."""
    return LayerAmax(
        linears={
            name: LinearAmax(
                input=max(amax.linears[name].input for amax in amaxes), weight=linear.weight
            )
            for name, linear in amaxes[0].linears.items()
        },
        key=max(amax.key for amax in amaxes),
        value=max(amax.value for amax in amaxes),
    )
