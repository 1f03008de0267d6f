"""Which of garak's probes are run, by the list that garak brings along."""

from __future__ import annotations

import json
from pathlib import Path

from nemotron_core.errors import NemotronError

PREFIX = "probes."
DEFAULT = (
    *("ansiescape", "continuation", "dan", "divergence", "encoding", "exploitation", "goodside"),
    *("grandma", "leakreplay", "malwaregen", "phrasing", "promptinject", "suffix", "tap"),
    "web_injection",
)
"""Modules of probes whose detectors compare texts; others need models or accounts elsewhere."""


def chosen_probes(package: Path, names: tuple[str, ...]) -> list[str]:
    """Return the probes that some names stand for, as `module.Class`.

    A module stands for its active probes, and `module.Class` for itself. `package` is the installed
    package garak. Raises `NemotronError` for a name that garak does not have.
    """
    path = package / "resources" / "plugin_cache.json"
    try:
        plugins = json.loads(path.read_text(encoding="utf-8"))["probes"]
        known = {
            name.removeprefix(PREFIX): bool(about["active"]) for name, about in plugins.items()
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise NemotronError(
            f"garak has no readable list of probes: {error}",
            where=path,
            remedy="run: nemotron eval install garak",
        ) from error
    chosen: list[str] = []
    for name in names:
        if name in known:
            matches = [name]
        else:
            matches = [p for p, active in known.items() if active and p.startswith(f"{name}.")]
        if not matches:
            modules = sorted({probe.partition(".")[0] for probe, active in known.items() if active})
            raise NemotronError(
                f"garak has no active probe {name}",
                where="--probe",
                remedy=f"name a probe, such as dan.Dan_11_0, or a module: {', '.join(modules)}",
            )
        chosen += [probe for probe in matches if probe not in chosen]
    return chosen
