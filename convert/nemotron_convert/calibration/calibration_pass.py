"""The calibration pass: all sequences go through one decoder layer before the next is read.

Memory holds one layer, or two while the next one is read, and the hidden states, whatever the
model's depth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from nemotron_convert.calibration.amax import check_finite
from nemotron_convert.calibration.assignment import assign
from nemotron_convert.calibration.decoder import from_words
from nemotron_convert.calibration.devices import host_empty
from nemotron_convert.calibration.hidden_states import HiddenStates
from nemotron_convert.calibration.layer_feed import LayerFeed, Slot
from nemotron_convert.calibration.layer_weights import (
    LINEAR_SOURCES,
    layer_nbytes,
)
from nemotron_convert.calibration.memory import Place
from nemotron_convert.calibration.options import CalibrationOptions
from nemotron_convert.calibration.record import LayerAmax, LinearAmax
from nemotron_convert.calibration.worker import INPUTS, KEY, VALUE, Magnitudes, Worker, weight_of
from nemotron_convert.source.nemo import Source
from nemotron_convert.team import Team
from nemotron_convert.tensor_map import EMBEDDING
from nemotron_core.errors import NemotronError
from nemotron_core.progress import byte_progress

EMBEDDED_TOKENS = 4096
"""Number of tokens whose embeddings are written at a time."""


class CalibrationPass:
    """One process's part of the calibration: its sequences, layer by layer, on its devices.

    `sequences` are those of all processes. `folder` keeps the state from which a later run resumes.
    Raises `NemotronError` if a device cannot be used or has too little memory.
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
        self._stopped = False
        self._layer_bytes = layer_nbytes(source)
        assignment = self._assignment = assign(source, sequences, options, team)
        self._states = self._make_states(folder / f"{team.rank}-of-{team.size}")
        self._workers = [
            Worker(source.config, device, self._states, first, part, assignment.plan.batch_tokens)
            for device, part, first in zip(
                assignment.devices, assignment.parts, assignment.starts, strict=True
            )
        ]

    def run(self) -> list[LayerAmax]:
        """Return each layer's largest magnitudes over the sequences of all processes.

        Raises `NemotronError` if weights or inputs of a linear layer hold NaN or Inf.
        """
        layers = self._resume()
        if not layers:
            self._embed()
        assignment = self._assignment
        feed = LayerFeed(self._source, assignment.devices, slots=assignment.plan.slots)
        total = self._source.config.num_layers * self._layer_bytes
        with (
            byte_progress("calibrating", total, shown=self._team.is_leader) as report,
            ThreadPoolExecutor(len(self._workers)) as pool,
            closing(feed.layers(len(layers))) as weights,
        ):
            report(len(layers) * self._layer_bytes)
            for layer, slot in weights:
                amaxes = self._run_layer(layer, slot, pool, report)
                layers.append(_largest(self._team.gather(amaxes)))
                should_save = self._states.should_save if self._team.is_leader else None
                save = self._team.broadcast(should_save)
                self._states.commit({"layers": [amax.model_dump() for amax in layers]}, save=save)
        return layers

    def _make_states(self, folder: Path) -> HiddenStates:
        width, assignment = self._source.config.hidden_size, self._assignment
        shapes = [(sum(part), width) for part in assignment.parts]
        tensors: list[torch.Tensor] = []  # none: on disk
        if assignment.plan.place is Place.MEMORY:
            tensors = [host_empty(shape, assignment.devices) for shape in shapes]
        elif assignment.plan.place is Place.DEVICE:
            tensors = [
                torch.empty(shape, dtype=torch.bfloat16, device=device)
                for shape, device in zip(shapes, assignment.devices, strict=True)
            ]
        return HiddenStates(folder, assignment.tokens, width, tensors)

    def _resume(self) -> list[LayerAmax]:
        """Return the layers that an earlier run finished, if all processes agree on them."""
        state = self._states.load()
        layers = [LayerAmax.model_validate(layer) for layer in state["layers"]] if state else []
        return layers if all(other == layers for other in self._team.gather(layers)) else []

    def _embed(self) -> None:
        ids = np.array(list(itertools.chain.from_iterable(self._assignment.sequences)), np.int64)
        distinct_ids, indexes = np.unique(ids, return_inverse=True)
        rows = self._source.tensors[EMBEDDING].read_rows(distinct_ids)
        for worker in self._workers:
            for first in range(worker.first, worker.end, EMBEDDED_TOKENS):
                end = min(first + EMBEDDED_TOKENS, worker.end)
                self._states.write(first, from_words(rows[indexes[first:end]]))
        self._states.commit({"layers": []}, save=False)

    def _run_layer(
        self, layer: int, slot: Slot, pool: ThreadPoolExecutor, report: Callable[[int], None]
    ) -> LayerAmax:
        def report_tokens(tokens: int) -> None:
            if self._stopped:
                raise CancelledError
            report(self._layer_bytes * tokens // self._assignment.tokens)

        futures = [
            pool.submit(worker.run, weights, report_tokens)
            for worker, weights in zip(self._workers, slot, strict=True)
        ]
        try:
            ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in ended:
                future.result()
        except BaseException:  # an error on one device, or Ctrl-C, ends the others at a batch
            self._stopped = True
            raise
        parts = [future.result() for future in futures]
        for magnitudes in parts:
            self._check(layer, magnitudes)
        return _largest([_layer_amax(magnitudes) for magnitudes in parts])

    def _check(self, layer: int, magnitudes: Magnitudes) -> None:
        for name, tensor in LINEAR_SOURCES.items():
            check_finite(self._source.tensors[tensor], layer, magnitudes[weight_of(name)])
        for name, result in INPUTS.items():
            if not math.isfinite(magnitudes[result]):
                raise NemotronError(
                    f"layer {layer}: the input of {name} is {magnitudes[result]}",
                    remedy="check the .nemo with `nemotron convert --strict`",
                )


def _layer_amax(magnitudes: Magnitudes) -> LayerAmax:
    linears = {
        name: LinearAmax(input=magnitudes[result], weight=magnitudes[weight_of(name)])
        for name, result in INPUTS.items()
    }
    return LayerAmax(linears=linears, key=magnitudes[KEY], value=magnitudes[VALUE])


def _largest(amaxes: Sequence[LayerAmax]) -> LayerAmax:
    """Return the maxima over devices or processes, whose weights are all the same."""
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
