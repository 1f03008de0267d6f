"""The chart as Helm renders it, by real Helm, 3 and 4."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.tools import fetched

CHART = Path(__file__).parents[2] / "helm" / "nemotron"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
VALUES = [path for path in EXAMPLES if path.stem != "prometheus-adapter"]
HELMS = ("helm3", "helm4")
TINY = CHART / "examples" / "cpu.yaml"

Document = dict[str, Any]


def helm(version: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(fetched("helm", version)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(
    *values: Path,
    name: str = "demo",
    version: str = "helm4",
    chart: Path = CHART,
    **changes: object,
) -> list[Document]:
    """What `helm template` makes of these files and, by `__` for the dot, these single values."""
    files = [part for path in values for part in ("--values", str(path))]
    single = [part for pair in changes.items() for part in ("--set-json", _assignment(*pair))]
    command = ("template", name, str(chart), "--namespace", "models", *files, *single)
    return [one for one in yaml.load_all(_output(version, command), yaml.CSafeLoader) if one]


@cache
def _output(version: str, command: tuple[str, ...]) -> str:
    done = helm(version, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _assignment(name: str, value: object) -> str:
    return f"{name.replace('__', '.')}={json.dumps(value)}"


def find(documents: list[Document], kind: str, ending: str = "") -> Document:
    """The only one of this kind whose name ends so, before a hash."""
    found = [
        one
        for one in documents
        if one["kind"] == kind and ending in one["metadata"]["name"].removeprefix("demo-nemotron")
    ]
    assert len(found) == 1, [one["metadata"]["name"] for one in found]
    return found[0]


def pod_templates(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Each pod that the documents bring about, and a name for it."""
    for one in documents:
        name, spec = one["metadata"]["name"], one.get("spec", {})
        match one["kind"]:
            case "Pod":
                yield name, one
            case "StatefulSet" | "Deployment" | "Job":
                yield name, spec["template"]
            case "LeaderWorkerSet":
                for role in ("leader", "worker"):
                    yield f"{name}-{role}", spec["leaderWorkerTemplate"][f"{role}Template"]


def as_pods(documents: list[Document]) -> list[Document]:
    """Everything, with the pods of a LeaderWorkerSet as Pods, for tools that know only those."""
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            **template,
            "metadata": {**template["metadata"], "name": name},
        }
        for one in documents
        if one["kind"] == "LeaderWorkerSet"
        for name, template in pod_templates([one])
    ]
    return [one for one in documents if one["kind"] != "LeaderWorkerSet"] + pods


def containers(template: Mapping[str, Any]) -> list[dict[str, Any]]:
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]
