"""The devices that calibrate: which, how much memory they have free, and copies to them."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from nemotron_convert.team import Team
from nemotron_core.errors import NemotronError
from nemotron_core.memory import free_memory

AUTO = "auto"
"""All GPUs of this machine, or the CPU if there is none."""
SAMPLE_SECONDS = 0.5
"""Duration of the measurement of a device."""


def open_devices(names: str, team: Team) -> list[torch.device]:
    """Return this process's part of the devices that `names` lists.

    `names` is `auto`, `cuda` (every GPU of the machine), or a list such as `cuda:0,cuda:2`. The
    processes of `team` on one machine divide its devices among them, or share them if there are
    more processes than devices. Raises `NemotronError` if a device cannot be used.
    """
    if names == AUTO:
        names = "cuda" if torch.cuda.device_count() else "cpu"
    listed = [name.strip() for name in names.split(",")]
    if listed == ["cuda"] and (count := torch.cuda.device_count()):
        listed = [f"cuda:{number}" for number in range(count)]
    hosts = team.gather(socket.gethostname())
    neighbours = [rank for rank, host in enumerate(hosts) if host == hosts[team.rank]]
    return [_open(name) for name in divide(listed, neighbours.index(team.rank), len(neighbours))]


def divide(devices: Sequence[str], process: int, processes: int) -> list[str]:
    """Return the devices of one of `processes` processes on a machine.

    >>> divide(["cuda:0", "cuda:1", "cuda:2"], 0, 2)
    ['cuda:0', 'cuda:2']
    >>> divide(["cuda:0", "cuda:1"], 2, 3)
    ['cuda:0']
    """
    return list(devices[process::processes]) or [devices[process % len(devices)]]


def _open(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise NemotronError(
            f"torch {torch.__version__} cannot use the device {name!r}: {reason}",
            where="--devices",
            remedy="use auto or cpu, or install a torch for your GPU",
        ) from error
    return device


def device_memory(devices: Sequence[torch.device], team: Team) -> list[int]:
    """Return the bytes of free memory that each of this process's devices may take.

    If several workers compute on one device, in this process or in others of `team` on the same
    machine, each of them gets an equal part. Every process measures before any takes memory.
    """
    free = [
        torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
        for device in devices
    ]
    places = [(socket.gethostname(), str(device)) for device in devices]
    workers = Counter(chain.from_iterable(team.gather(places)))
    return [nbytes // workers[place] for nbytes, place in zip(free, places, strict=True)]


def has_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies BF16 numbers itself. CPUs with AVX2 alone do not."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def measure_products(device: torch.device) -> float:
    """Return the multiplications and additions per second of a device's matrix products.

    They are of BF16 numbers, or of F32 numbers on a CPU without BF16 arithmetic, as in a
    calibration.
    """
    tokens, width = (512, 2048) if device.type == "cpu" else (8192, 8192)
    dtype = torch.bfloat16 if has_bf16(device) else torch.float32
    matrix = torch.ones(width, width, dtype=dtype, device=device)
    values = torch.ones(tokens, width, dtype=dtype, device=device)
    products = 0
    (values @ matrix.T)[0, 0].item()  # the first one also loads the kernel
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SAMPLE_SECONDS or not products:
        (values @ matrix.T)[0, 0].item()  # waits for a GPU
        products += 1
    return products * 2 * tokens * width**2 / elapsed


def host_empty(shape: tuple[int, ...], devices: Sequence[torch.device]) -> Tensor:
    """Return a BF16 tensor in the CPU's memory, page-locked if `devices` have a GPU.

    Only page-locked memory is copied to a GPU and from it while the GPU computes.
    """
    pinned = any(device.type == "cuda" for device in devices)
    return torch.empty(shape, dtype=torch.bfloat16, pin_memory=pinned)


class Upload:
    """Copies to one device that do not wait for its computation, nor it for them."""

    def __init__(self, device: torch.device) -> None:
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, target: Tensor, staged: Tensor) -> None:
        """Start to copy `staged`, in page-locked memory, to `target` on the device."""
        with self._context():
            target.copy_(staged, non_blocking=True)

    def wait(self) -> None:
        """Wait until every copy that this thread has started is done."""
        if self._stream is not None:
            self._stream.record_event().synchronize()

    def _context(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which `device` is the current GPU of the calling thread."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
