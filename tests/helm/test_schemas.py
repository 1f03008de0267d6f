"""The rendered documents against the schemas of Kubernetes and of the custom resources."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.helm.chart import SEVERAL_PODS, TINY, VALUES, Document, as_pods, render
from tests.tools import python_tool

CRDS = Path(__file__).with_name("crds")
VERSIONS = ("1.25.0", "1.37.0")
"""The lowest version in Chart.yaml, and the newest version whose schema is available here."""
EVERYTHING: list[dict[str, object]] = [
    {"monitoring__scrape": "serviceMonitor", "monitoring__rules": True},
    {"autoscaling__kind": "hpa", "gateway__placement": "beside"},
    {
        "serviceAccount__annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"},
        "image__digests": {"cpu": "sha256:" + "a" * 64},
        "gateway__settings": {"model": "nemotron"},
        "server__engine__separate": False,
        "server__podOverlay": {
            "metadata": {"annotations": {"networks": "rdma"}},
            "spec": {"hostNetwork": True, "containers": [{"name": "server", "tty": True}]},
        },
    },
    {"autoscaling__kind": "keda", "gateway__placement": "beside"},
    {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": []}},
]
CUSTOM = {
    "LeaderWorkerSet",
    "PodMonitor",
    "ServiceMonitor",
    "PrometheusRule",
    "ScaledObject",
    "HTTPRoute",
}


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    rendered = [document for values in VALUES for document in render(values)]
    for changes in EVERYTHING:
        for values in VALUES:
            rendered += render(values, **((SEVERAL_PODS if values == TINY else {}) | changes))
    return list({json.dumps(document, sort_keys=True): document for document in rendered}.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes(version: str, documents: list[Document], tmp_path: Path) -> None:
    rendered = tmp_path / "rendered.yaml"
    core = [document for document in as_pods(documents) if document["kind"] not in CUSTOM]
    rendered.write_text(yaml.safe_dump_all(core))
    program = python_tool("kubernetes_validate", "kubernetes-validate")
    command = [str(program), "--strict", "--kubernetes-version", version, str(rendered)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 0, "\n".join(lines)
    assert len([line for line in lines if line.startswith("INFO")]) == len(core), lines[:5]


def test_a_typo_does_not_pass(documents: list[Document], tmp_path: Path) -> None:
    document = next(document for document in documents if document["kind"] == "StatefulSet")
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(yaml.safe_dump({**document, "spec": {**document["spec"], "replica": 1}}))
    program = python_tool("kubernetes_validate", "kubernetes-validate")
    command = [str(program), "--strict", "--kubernetes-version", VERSIONS[0], str(rendered)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_custom_resources(documents: list[Document]) -> None:
    validators = dict(crds())
    checked = set()
    for document in documents:
        if document["kind"] in CUSTOM:
            validators[document["apiVersion"], document["kind"]].validate(document)
            checked.add(document["kind"])
    assert checked == CUSTOM
    group = next(document for document in documents if document["kind"] == "LeaderWorkerSet")
    wrong = json.loads(json.dumps(group))
    wrong["spec"]["leaderWorkerTemplate"]["sizes"] = 2
    with pytest.raises(jsonschema.ValidationError, match="sizes"):
        validators[group["apiVersion"], group["kind"]].validate(wrong)


def crds() -> list[tuple[tuple[str, str], jsonschema.Draft202012Validator]]:
    validators = []
    for path in CRDS.glob("*.yaml"):
        spec = yaml.safe_load(path.read_text())["spec"]
        (version,) = spec["versions"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
        key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
        validators.append((key, jsonschema.Draft202012Validator(schema)))
    return validators


def strict(part: Any) -> Any:
    """Return an OpenAPI schema as Kubernetes reads it: objects have no unknown keys by default."""
    if isinstance(part, list):
        return [strict(child) for child in part]
    if not isinstance(part, dict):
        return part
    schema = {
        key: strict(child) for key, child in part.items() if not key.startswith("x-kubernetes")
    }
    if part.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    if part.get("nullable") and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    if not isinstance(part.get("properties"), dict):
        return schema
    schema["properties"] = {name: strict(child) for name, child in part["properties"].items()}
    if not part.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema
