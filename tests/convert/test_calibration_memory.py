"""What a calibration keeps on its devices, for the 340B on GPUs that exist."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nemotron_convert.calibration import devices
from nemotron_convert.calibration.decoder import RotaryEmbedding, run_layer
from nemotron_convert.calibration.layer_weights import ResidentLayer
from nemotron_convert.calibration.memory import Place, Room, plan_memory, token_bytes
from nemotron_convert.source.nemo import Source
from nemotron_convert.team import ALONE, Team
from nemotron_core.errors import NemotronError
from tests.convert.nemo import NEMO
from tests.convert.test_plan import REAL

LAYER_BYTES = 6_908_018_688
"""The four matrices of one layer of the 340B."""
STATES = 512 * 512 * 18432 * 2
GB = 10**9


def plan(
    gpus: int, free: int, *, states: int = STATES, limit: int = 0, cpu: bool = False
) -> object:
    rooms = [Room(free, not cpu, states // gpus)] * gpus
    made = plan_memory(REAL, LAYER_BYTES, rooms, longest=512, states_limit=limit)
    return made.slots, made.place, made.batch_tokens


@pytest.mark.parametrize(
    ("gpus", "free", "expected"),
    [
        (1, 140 * GB, (2, Place.DEVICE, 16384)),  # H200
        (1, 79 * GB, (2, Place.DEVICE, 16384)),  # H100
        (8, 79 * GB, (2, Place.DEVICE, 16384)),
        (8, 23 * GB, (2, Place.DEVICE, 6843)),
        (1, 23 * GB, (2, Place.DISK, 8299)),
        (1, 12 * GB, (1, Place.DISK, 4692)),
    ],
)
def test_of_gpus(gpus: int, free: int, expected: object) -> None:
    assert plan(gpus, free) == expected


def test_of_the_cpu() -> None:
    """The user's limit decides about the hidden states, if there is room beside two layers."""
    slots, place, tokens = plan(1, 64 * GB, limit=10 * GB, cpu=True)  # type: ignore[misc]
    assert (slots, place) == (2, Place.MEMORY)
    assert 512 <= tokens <= 2048
    assert plan(1, 64 * GB, limit=8 * GB, cpu=True) == (2, Place.DISK, tokens)
    assert plan(1, 20 * GB, limit=10 * GB, cpu=True) == (2, Place.DISK, tokens)
    assert plan(1, 27 * GB, limit=10 * GB, cpu=True) == (2, Place.MEMORY, 988)
    assert plan(4, 16 * GB, cpu=True) == (2, Place.DISK, 704)
    assert plan(1, 9 * GB, cpu=True) == (1, Place.DISK, tokens)


def test_a_device_without_room_for_a_layer_is_refused() -> None:
    with pytest.raises(NemotronError, match=r"needs 7,\d+,\d+,\d+ bytes .* 5,400,000,000 are free"):
        plan(1, 6 * GB)


def test_the_estimate_covers_a_layers_results() -> None:
    """All results that are alive at a time, counted by the observer's view of them."""
    with Source.open(NEMO) as source:
        config = source.config
        weights = ResidentLayer.allocate(source, torch.device("cpu"))
    weights = replace(weights, has_bf16=True)  # the estimate is for devices that have it
    for tensor in weights.matrices.values():
        tensor.fill_(0.01)
    for gamma, beta in weights.norms.values():
        gamma.fill_(1)
        beta.fill_(0)
    lengths = (64, 64)
    results: dict[str, int] = {}
    run_layer(
        weights,
        torch.ones(128, config.hidden_size),
        RotaryEmbedding(config, lengths),
        lengths,
        lambda name, values: results.update({name: values.nbytes}),
    )
    held_by_the_mlp = ("middle", "hidden", "post_normed", "wide", "squared")
    held_by_the_attention = ("normed", "query", "key", "value", "cached_key", "attended")
    for names in (held_by_the_mlp, held_by_the_attention):
        assert sum(results[name] for name in names) <= 128 * token_bytes(config)
    assert results["wide"] == 128 * config.intermediate_size * 2  # BF16, not F32


class OneMachine(Team):
    """Two processes on one machine that use the same devices."""

    def gather(self, value: object) -> list[object]:  # type: ignore[override]
        return [value, value]


def test_those_who_share_a_device_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpus = torch.device("cpu"), [torch.device("cuda:0"), torch.device("cuda:1")]
    monkeypatch.setattr(devices, "free_memory", lambda: 1200)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (500 + gpu.index, 900))
    assert devices.device_memory([cpu], ALONE) == [1200]
    assert devices.device_memory([cpu, cpu, cpu], ALONE) == [400, 400, 400]
    assert devices.device_memory([cpu, *gpus, gpus[0]], ALONE) == [1200, 250, 501, 250]
    assert devices.device_memory([cpu, cpu, gpus[0]], OneMachine(1, 2)) == [300, 300, 250]


class Neighbours(Team):
    """The first of two processes on one machine, beside one on another."""

    def gather(self, value: object) -> list[object]:  # type: ignore[override]
        return ["elsewhere", value, value]


def test_auto_is_every_gpu_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs are divided among the processes of one machine, whatever runs on others."""
    assert devices.open_devices("auto", ALONE) == [torch.device("cpu")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(devices, "_open", lambda name: name)
    for names in ("auto", "cuda"):
        assert devices.open_devices(names, ALONE) == ["cuda:0", "cuda:1", "cuda:2"]
        assert devices.open_devices(names, Neighbours(1, 3)) == ["cuda:0", "cuda:2"]
        assert devices.open_devices(names, Neighbours(2, 3)) == ["cuda:1"]
    assert devices.open_devices("cuda:2, cpu", ALONE) == ["cuda:2", "cpu"]
