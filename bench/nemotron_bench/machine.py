"""The machine and the library versions that a measurement is made with."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    *("nemotron-triton", "nvidia-pytriton", "openvino", "openvino-genai"),
    *("tritonclient", "grpcio", "numpy"),
)
CPU_INFO = Path("/proc/cpuinfo")


def machine() -> dict[str, str | int]:
    """Return the CPU, usable cores, memory in bytes, system and Python version of this machine."""
    model = platform.processor() or platform.machine()
    if CPU_INFO.exists():
        lines = [line.partition(":") for line in CPU_INFO.read_text().splitlines()]
        fields = {name.strip(): value.strip() for name, _, value in reversed(lines)}
        # Several generations may have one name under a hypervisor; family and model differ.
        numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
        model = ", ".join([fields.get("model name", model), *numbers])
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the libraries installed here.

    The measured server may run elsewhere and have others.
    """
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def now() -> str:
    """Return the current time in UTC as ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
