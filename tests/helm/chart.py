"""The chart, rendered by the real Helm 3 and 4."""

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
PARTS = ("prometheus-adapter", "openshift")
"""Examples that are no deployment by themselves."""
VALUES = [path for path in EXAMPLES if path.stem not in PARTS]
HELMS = ("helm3", "helm4")
TINY = CHART / "examples" / "cpu.yaml"
ONE_NODE = CHART / "examples" / "h100-fp8.yaml"
TWO_NODES = CHART / "examples" / "two-nodes.yaml"
PRODUCTION = CHART / "examples" / "production.yaml"
SOURCE: dict[str, object] = {"model__source__path": "/models/model.nemo"}
"""A value without which the chart's own values name no weights."""
SEVERAL_PODS: dict[str, object] = {
    "storage__accessMode": "ReadWriteMany",
    "convert__place": "job",
    "build__job": True,
    "gateway__placement": "own",
}
"""Values with which the tiny model's parts run in pods of their own, like the real model's."""

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
    """Return the documents of `helm template` for files of values and single values.

    In the names of single values, `__` stands for the dot.
    """
    files = [part for path in values for part in ("--values", str(path))]
    single = [part for pair in changes.items() for part in ("--set-json", _assignment(*pair))]
    command = ("template", name, str(chart), "--namespace", "models", *files, *single)
    return [
        document
        for document in yaml.load_all(_output(version, command), yaml.CSafeLoader)
        if document
    ]


@cache
def _output(version: str, command: tuple[str, ...]) -> str:
    done = helm(version, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(
    *values: Path, version: str = "helm4", options: tuple[str, ...] = (), **changes: object
) -> str:
    """Return why Helm refuses to install with the values."""
    files = [part for path in values for part in ("--values", str(path))]
    single = [part for pair in changes.items() for part in ("--set-json", _assignment(*pair))]
    command = ("install" if options else "template", "demo", CHART, "--namespace", "models")
    done = helm(version, *command, *options, *files, *single)
    assert done.returncode != 0, "Helm does not refuse this"
    return done.stderr


def _assignment(name: str, value: object) -> str:
    return f"{name.replace('__', '.')}={json.dumps(value)}"


def find(documents: list[Document], kind: str, ending: str = "") -> Document:
    """Return the only document of a kind whose name has this ending, before a hash."""
    matches = [
        document
        for document in documents
        if document["kind"] == kind
        and ending in document["metadata"]["name"].removeprefix("demo-nemotron")
    ]
    assert len(matches) == 1, [document["metadata"]["name"] for document in matches]
    return matches[0]


def pod_templates(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Yield the name and the template of each pod that the documents create."""
    for document in documents:
        name, spec = document["metadata"]["name"], document.get("spec", {})
        match document["kind"]:
            case "Pod":
                yield name, document
            case "StatefulSet" | "Deployment" | "Job":
                yield name, spec["template"]
            case "LeaderWorkerSet":
                for role in ("leader", "worker"):
                    yield f"{name}-{role}", spec["leaderWorkerTemplate"][f"{role}Template"]


def as_pods(documents: list[Document]) -> list[Document]:
    """Replace each LeaderWorkerSet by its Pods, for tools that do not know LeaderWorkerSets."""
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            **template,
            "metadata": {**template["metadata"], "name": name},
        }
        for document in documents
        if document["kind"] == "LeaderWorkerSet"
        for name, template in pod_templates([document])
    ]
    return [document for document in documents if document["kind"] != "LeaderWorkerSet"] + pods


def containers(template: Mapping[str, Any]) -> list[dict[str, Any]]:
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]
