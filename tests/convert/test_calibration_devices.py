"""Tests of the devices that calibrate: their threads, their weights and their waiting."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemotron_convert.calibration import layer_weights, memory
from nemotron_convert.calibration.calibration_pass import CalibrationPass
from nemotron_convert.calibration.hidden_states import HiddenStates
from nemotron_convert.calibration.layer_feed import LayerFeed
from nemotron_convert.calibration.layer_weights import LINEAR_SOURCES, ResidentLayer
from nemotron_convert.calibration.worker import Worker
from nemotron_convert.convert import convert
from nemotron_convert.source.nemo import Source
from nemotron_core.errors import NemotronError
from tests.convert.nemo import NEMO, unpack
from tests.convert.test_calibrate import IDS, layers, options
from tests.waiting import until


def test_two_devices_share_the_sequences(tmp_path: Path) -> None:
    """Each has its thread, its sequences and its copy of a layer that is read once."""
    convert(NEMO, tmp_path / "one", options(ids=IDS, devices="cpu"))
    convert(NEMO, tmp_path / "two", options(ids=IDS, devices="cpu,cpu"))
    convert(NEMO, tmp_path / "disk", options(ids=IDS, devices="cpu,cpu", memory=0))
    assert layers(tmp_path / "one") == layers(tmp_path / "two") == layers(tmp_path / "disk")


def test_more_devices_than_sequences(tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[[5, 6, 7]]")
    given = options(ids=tmp_path / "ids.json", devices="cpu,cpu,cpu")
    convert(NEMO, tmp_path / "out", given)
    assert len(layers(tmp_path / "out")) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("failing_device", [0, 1])
def test_an_error_on_one_device_ends_the_other(
    failing_device: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other device waits after its first batch until the failing one has failed."""
    monkeypatch.setattr(memory, "CPU_BATCH_BYTES", 1)  # each sequence is a batch
    started, batches = threading.Event(), list[int]()
    run = Worker.run

    def failing(self: Worker, weights: ResidentLayer, report: Callable[[int], None]) -> object:
        if (self.first > 0) == bool(failing_device):
            started.wait()
            raise NemotronError("no power")

        started.set()

        def waiting(tokens: int) -> None:
            batches.append(tokens)
            until(lambda: calibrations[0]._stopped)
            report(tokens)

        return run(self, weights, waiting)

    calibrations: list[CalibrationPass] = []
    start = CalibrationPass.run
    monkeypatch.setattr(
        CalibrationPass, "run", lambda self: calibrations.append(self) or start(self)
    )
    monkeypatch.setattr(Worker, "run", failing)
    with pytest.raises(NemotronError, match="no power"):
        convert(NEMO, tmp_path / "out", options(ids=IDS, devices="cpu,cpu"))
    assert len(batches) == 1


class NumbersTaken(TorchDispatchMode):
    """Counts the numbers that are taken out of a tensor, for each of which a GPU is waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__.startswith(("_local_scalar_dense", "is_nonzero", "equal"))
        return func(*args, **(kwargs or {}))


def calibration_worker(source: Source, folder: Path, device: str) -> tuple[Worker, ResidentLayer]:
    """Return a worker with ten sequences in four batches, and weights that are all alike."""
    lengths = [3, 3, 5, 5, 5, 6, 6, 8, 8, 8]
    states = torch.ones(sum(lengths), source.config.hidden_size, dtype=torch.bfloat16)
    place = torch.device(device)
    parts = [states.to(place)]
    states_of_all = HiddenStates(folder, sum(lengths), source.config.hidden_size, parts)
    worker = Worker(source.config, place, states_of_all, 0, lengths, 17)
    weights = ResidentLayer.allocate(source, place)
    for tensor in (*weights.matrices.values(), *itertools.chain(*weights.norms.values())):
        tensor.fill_(0.01)
    return worker, weights


def test_a_device_is_waited_for_once_in_a_layer(tmp_path: Path) -> None:
    """On the device without numbers, which refuses every copy to the CPU."""
    with Source.open(NEMO) as source:
        worker, weights = calibration_worker(source, tmp_path, "meta")
        names, largest = worker.start(weights)
        assert (largest.device.type, largest.shape) == ("meta", (len(names),))
        for wait in (largest.cpu, largest[0].item, largest.tolist):
            with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
                wait()  # `run` does this once, next


def test_no_number_is_taken_out_of_a_tensor(tmp_path: Path) -> None:
    with Source.open(NEMO) as source:
        worker, weights = calibration_worker(source, tmp_path, "cpu")
        batches: list[int] = []
        with NumbersTaken() as numbers:
            magnitudes = worker.run(weights, batches.append)
            assert numbers.count == 0
            float(torch.ones(1))
            assert numbers.count == 1
    assert batches == [16, 17, 16, 8]
    assert all(value > 0 for value in magnitudes.values())


def test_products_without_bf16_arithmetic_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Except for the order of sums, and so for the last bit of a few."""
    monkeypatch.setattr(layer_weights, "BLOCK_BYTES", 3 * 4 * 128)
    torch.manual_seed(1)
    with Source.open(NEMO) as source:
        weights = ResidentLayer.allocate(source, torch.device("cpu"))
    results = []
    for name, matrix in weights.matrices.items():
        matrix.copy_(torch.randn(matrix.shape))
        values = torch.randn(7, matrix.shape[1])
        native, widened = (
            replace(weights, has_bf16=has_bf16).linear(name, values) for has_bf16 in (True, False)
        )
        assert native.dtype == widened.dtype == torch.bfloat16
        torch.testing.assert_close(native, widened, rtol=2**-7, atol=2**-7)
        results.append((native == widened).float().mean())
    assert min(results) > 0.9


def test_the_next_layer_is_read_during_a_computation() -> None:
    cpu = torch.device("cpu")
    with Source.open(NEMO) as source:
        feed = LayerFeed(source, [cpu, cpu], slots=2, readers=2)
        expected = [source.tensors[name].read_layer(1) for name in LINEAR_SOURCES.values()]
        with closing(feed.layers(0)) as layers_of_source:
            number, slot = next(layers_of_source)
            assert number == 0
            following = feed._slots[1]
            until(
                lambda: all(
                    matrix.view(torch.uint16).tolist() == words.tolist()
                    for resident in following
                    for matrix, words in zip(resident.matrices.values(), expected, strict=True)
                )
            )
            assert next(layers_of_source)[1] is following
            assert next(layers_of_source)[1] is slot


@pytest.mark.parametrize("slots", [1, 2])
def test_a_layer_that_cannot_be_read_ends_the_feed(slots: int, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "in")
    with Source.open(folder) as source:
        os.truncate(folder / "model_weights/model.decoder.layers.mlp.linear_fc1.weight/1.0.0", 9)
        feed = LayerFeed(source, [torch.device("cpu")], slots=slots, readers=2)
        threads = threading.active_count()
        with closing(feed.layers(0)) as layers_of_source:
            assert next(layers_of_source)[0] == 0
            with pytest.raises(NemotronError, match="ends early"):
                next(layers_of_source)
        assert threading.active_count() == threads
