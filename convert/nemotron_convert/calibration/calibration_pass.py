"""Calibration layer by layer: all sequences pass through one layer before the next is read.

Memory is one layer and the hidden states, whatever the model's depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nemotron_convert.calibration.amax import check_finite
from nemotron_convert.calibration.data import CalibrationData
from nemotron_convert.calibration.decoder import (
    Trace,
    from_words,
    layer_norm,
    rotary_of,
    run_layer,
    split_groups,
    to_words,
)
from nemotron_convert.calibration.hidden_states import Activations
from nemotron_convert.calibration.record import Calibration, LayerAmax, LinearAmax
from nemotron_convert.source.nemo import Source
from nemotron_convert.target.copier import add_gamma
from nemotron_convert.target.fp8 import amax_bits, bf16_from_bits
from nemotron_convert.team import Team
from nemotron_convert.tensor_map import EMBEDDING, LAYERS, LINEARS, TENSOR_MAP
from nemotron_core.errors import NemotronError
from nemotron_core.model_config import ModelConfig
from nemotron_core.progress import byte_progress

BATCH_BYTES = 256 << 20
"""Of the widest intermediate result, in BF16: so many tokens go through a layer at a time."""
SOURCES = {name: source for source, name in LINEARS.items()}
NORMS = {
    rule.target.rpartition("}.")[2].rpartition(".")[0]: rule.source.rpartition("_")[0]
    for rule in TENSOR_MAP
    if rule.source.startswith(LAYERS) and rule.is_gamma
}
"""`input_layernorm` and `post_layernorm`: their source tensors without `_weight` or `_bias`."""


def calibrate(
    source: Source,
    digest: str,
    data: CalibrationData,
    folder: Path,
    team: Team,
    *,
    device: str,
    memory: int,
) -> Calibration:
    """Show `data` to the model and note the largest inputs, each process with its sequences.

    `folder` keeps what a later call goes on from; `digest` names the source's files. Up to `memory`
    bytes of hidden states stay in memory.
    NemotronError if there is no such device or the weights hold NaN or Inf.
    """
    where = _device(device, team)
    mine = data.sequences[team.rank :: team.size]
    tokens = sum(map(len, mine))
    width = source.config.hidden_size
    in_memory = tokens * width * 2 <= memory
    part = folder / f"{team.rank}-of-{team.size}"
    states = Activations(part, tokens, width, in_memory=in_memory)
    layers = _take_up(states, team)
    if not layers:
        _embed(source, mine, states)
    total = source.config.num_layers * _layer_bytes(source)
    with byte_progress("calibrating", total, shown=team.is_leader) as report:
        report(len(layers) * _layer_bytes(source))
        for layer in range(len(layers), source.config.num_layers):
            found = _run_layer(source, layer, mine, states, where, report)
            layers.append(_largest(team.gather(found)))
            save = team.broadcast(states.should_save if team.is_leader else None)
            states.commit({"layers": [one.model_dump() for one in layers]}, save=save)
    return Calibration(
        model=source.archive.path.name,
        source=digest,
        data=data.name,
        data_sha256=data.sha256,
        sequences=len(data.sequences),
        tokens=data.tokens,
        layers=layers,
    )


def _device(name: str, team: Team) -> torch.device:
    try:
        device = torch.device(name)
        if name == "cuda" and torch.cuda.is_available():
            device = torch.device("cuda", team.rank % torch.cuda.device_count())
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise NemotronError(
            f"torch {torch.__version__} cannot use the device {name!r}: {why}",
            where="--device",
            remedy="use cpu, or install a torch for your GPU",
        ) from error
    return device


def _take_up(states: Activations, team: Team) -> list[LayerAmax]:
    """The layers that an earlier run has done, if every process has kept the same ones."""
    state = states.load()
    done = [LayerAmax.model_validate(layer) for layer in state["layers"]] if state else []
    return done if all(other == done for other in team.gather(done)) else []


def _embed(source: Source, sequences: Sequence[Sequence[int]], states: Activations) -> None:
    ids = np.array(list(itertools.chain.from_iterable(sequences)), np.int64)
    if not ids.size:
        return
    wanted, places = np.unique(ids, return_inverse=True)
    rows = source.tensors[EMBEDDING].read_rows(wanted)
    for start in range(0, len(ids), 4096):
        states.write(start, rows[places[start : start + 4096]])
    states.commit({"layers": []}, save=False)


def _run_layer(
    source: Source,
    layer: int,
    sequences: Sequence[Sequence[int]],
    states: Activations,
    device: torch.device,
    report: Callable[[int], None],
) -> LayerAmax:
    weights = ResidentLayer(source, layer, device)
    inputs = dict.fromkeys(LINEARS.values(), 0.0)
    key = value = 0.0
    tokens = sum(map(len, sequences))
    for first, lengths in _batches(sequences, source.config):
        end = first + sum(lengths)
        hidden = from_words(np.ascontiguousarray(states.read(first, end))).to(device).float()
        with torch.inference_mode():
            trace = run_layer(
                weights, hidden, rotary_of(source.config, lengths).to(device), lengths
            )
            for name, values in _inputs(trace).items():
                inputs[name] = max(inputs[name], _amax(values))
            key, value = max(key, _amax(trace.cached_key)), max(value, _amax(trace.value))
        states.write(first, to_words(trace.hidden))
        report(_layer_bytes(source) * (end - first) // tokens)
    linears = {name: LinearAmax(input=inputs[name], weight=weights.amaxes[name]) for name in inputs}
    _check_inputs(linears, layer)
    return LayerAmax(linears=linears, key=key, value=value)


def _inputs(trace: Trace) -> dict[str, Tensor]:
    return {
        "attention.qkv": trace.normed,
        "attention.dense": trace.attended,
        "mlp.fc": trace.post_normed,
        "mlp.proj": trace.squared,
    }


def _amax(values: Tensor) -> float:
    """As the product sees them, in BF16."""
    return float(values.abs().amax().to(torch.bfloat16))


def _check_inputs(linears: dict[str, LinearAmax], layer: int) -> None:
    for name, amax in linears.items():
        if not np.isfinite(amax.input):
            raise NemotronError(
                f"layer {layer}: the input of {name} is {amax.input}",
                remedy="check the .nemo with `nemotron convert --strict`",
            )


def _largest(found: Sequence[LayerAmax]) -> LayerAmax:
    """Over the processes, which all have the same weights."""
    return LayerAmax(
        linears={
            name: LinearAmax(
                input=max(one.linears[name].input for one in found),
                weight=found[0].linears[name].weight,
            )
            for name in found[0].linears
        },
        key=max(one.key for one in found),
        value=max(one.value for one in found),
    )


def _batches(
    sequences: Sequence[Sequence[int]], config: ModelConfig
) -> Iterator[tuple[int, list[int]]]:
    """(first token, lengths) of sequences that go through a layer together."""
    limit = BATCH_BYTES // (2 * max(config.intermediate_size, config.qkv_rows))
    first, lengths = 0, list[int]()
    for sequence in sequences:
        if lengths and sum(lengths) + len(sequence) > limit:
            yield first, lengths
            first, lengths = first + sum(lengths), []
        lengths.append(len(sequence))
    if lengths:
        yield first, lengths


def _layer_bytes(source: Source) -> int:
    return sum(source.tensors[name].layer_bytes for name in LINEARS)


class ResidentLayer:
    """A layer's weights in BF16 on a device, multiplied there in BF16."""

    def __init__(self, source: Source, layer: int, device: torch.device) -> None:
        self._config = source.config
        self._norms = {name: read_norm(source, layer, name, device) for name in NORMS}
        self._matrices: dict[str, Tensor] = {}
        self.amaxes: dict[str, float] = {}
        """Largest magnitudes of the matrices."""
        for name, stored in SOURCES.items():
            words = source.tensors[stored].read_layer(layer)
            bits = amax_bits(words)
            check_finite(source.tensors[stored], layer, bits)
            self.amaxes[name] = bf16_from_bits(bits)
            self._matrices[name] = from_words(words).to(device)

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        """See `LayerWeights`."""
        return layer_norm(hidden, *self._norms[name], self._config.norm_eps)

    def linear(self, name: str, values: Tensor) -> Tensor:
        """See `LayerWeights`."""
        return (values.to(torch.bfloat16) @ self._matrices[name].T).float()

    def qkv(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `LayerWeights`."""
        return split_groups(self.linear("attention.qkv", normed), self._config)


def read_norm(source: Source, layer: int, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gamma, its 1 included as the checkpoints have it, and bias, both [H] in BF16."""
    weight, bias = (
        source.tensors[f"{NORMS[name]}_{kind}"].read_layer(layer)[0] for kind in ("weight", "bias")
    )
    if source.config.gamma_is_centered:
        weight = add_gamma(weight, 1)
    return from_words(weight).to(device), from_words(bias).to(device)
