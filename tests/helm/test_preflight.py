"""What Helm says before it installs something that could not work in this cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.api_server import Object, api_server, named, secret
from tests.helm.chart import (
    CHART,
    HELMS,
    PRODUCTION,
    TINY,
    TWO_NODES,
    Document,
    find,
    helm,
    refusal,
)

MONITORING = {"monitoring.coreos.com/v1": ("PodMonitor", "ServiceMonitor", "PrometheusRule")}
KINDS = MONITORING | {
    "keda.sh/v1alpha1": ("ScaledObject",),
    "gateway.networking.k8s.io/v1": ("HTTPRoute",),
    "leaderworkerset.x-k8s.io/v1": ("LeaderWorkerSet",),
}
SECRETS = (
    secret("nemotron-keys", "keys"),
    secret("s3-credentials", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    secret("nemotron-tls", "tls.crt", "tls.key"),
)


def node(name: str, gpus: int) -> Object:
    return named("v1", "Node", name, status={"allocatable": {"nvidia.com/gpu": str(gpus)}})


def claim(name: str, *modes: str) -> Object:
    return named(
        "v1",
        "PersistentVolumeClaim",
        name,
        spec={"accessModes": list(modes), "storageClassName": "fast"},
    )


def on(url: str) -> tuple[str, ...]:
    """Return the options with which Helm asks a cluster."""
    return ("--dry-run=server", "--disable-openapi-validation", f"--kube-apiserver={url}")


def rendered(url: str, *values: Path, version: str = "helm4", **changes: str) -> list[Document]:
    files = [part for path in values for part in ("--values", str(path))]
    single = [part for name, text in changes.items() for part in ("--set", f"{name}={text}")]
    command = ("install", "demo", CHART, "--namespace", "models", "--output", "json")
    done = helm(version, *command, *on(url), *files, *single)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)["manifest"]
    return [document for document in yaml.load_all(manifest, yaml.CSafeLoader) if document]


@pytest.mark.parametrize("version", HELMS)
def test_all_that_is_missing_is_said_at_once(version: str) -> None:
    wrong_keys = secret("nemotron-keys", "key")
    with api_server(wrong_keys, kinds=MONITORING) as url:
        text = refusal(PRODUCTION, version=version, options=on(url))
    for line in (
        "- gateway.apiKeysSecret: the Secret nemotron-keys has no key keys",
        "- model.source.s3.secret: there is no Secret s3-credentials in the namespace models",
        "- ingress.tlsSecret: there is no Secret nemotron-tls in the namespace models",
        "- autoscaling.kind=keda: this cluster does not know the kind ScaledObject of "
        "keda.sh/v1alpha1: install KEDA",
        "- httpRoute.enabled: this cluster does not know the kind HTTPRoute of "
        "gateway.networking.k8s.io/v1: install the Gateway API",
    ):
        assert line in text
    assert "PodMonitor" not in text


@pytest.mark.parametrize("version", HELMS)
def test_a_cluster_that_has_everything(version: str) -> None:
    with api_server(*SECRETS, kinds=KINDS) as url:
        assert len(rendered(url, PRODUCTION, version=version)) > 10


def test_what_is_missing_for_two_nodes() -> None:
    with api_server() as url:
        text = refusal(TWO_NODES, options=on(url))
    assert "storage.existingClaim: there is no claim models" in text
    assert "server.multiNode.sshSecret: there is no Secret nemotron-ssh" in text
    assert "LeaderWorkerSet of leaderworkerset.x-k8s.io/v1" in text


def test_scaling_a_kind_that_the_cluster_does_not_know() -> None:
    changes: dict[str, Any] = {"autoscaling__kind": "hpa", "gateway__placement": "beside"}
    with api_server() as url:
        text = refusal(TWO_NODES, options=on(url), **changes)
    assert "install LeaderWorkerSet's controller" in text


def test_classes_and_gpus_are_asked_for_on_request() -> None:
    few = [node("a", 8), node("b", 4)]
    ssh = secret("nemotron-ssh", "id_ed25519", "id_ed25519.pub", "known_hosts")
    with api_server(ssh, claim("models", "ReadWriteMany"), *few, kinds=KINDS) as url:
        assert rendered(url, TWO_NODES)
        changes: dict[str, Any] = {"preflight": "cluster", "server__runtimeClassName": "nvidia"}
        text = refusal(TWO_NODES, options=on(url), **changes)
        assert "1 nodes offer 8 of nvidia.com/gpu, 2 are needed" in text
        assert "server.runtimeClassName: there is no RuntimeClass nvidia" in text
    enough = [*few, node("c", 8), named("node.k8s.io/v1", "RuntimeClass", "nvidia")]
    with api_server(ssh, claim("models", "ReadWriteMany"), *enough, kinds=KINDS) as url:
        values = {"preflight": "cluster", "server.runtimeClassName": "nvidia"}
        assert rendered(url, TWO_NODES, **values)


def test_a_claim_that_cannot_be_changed() -> None:
    with api_server(claim("demo-nemotron-models", "ReadWriteOnce")) as url:
        assert rendered(url, TINY)
        changes: dict[str, Any] = {"storage__storageClass": "shared"}
        text = refusal(TINY, options=on(url), storage__accessMode="ReadWriteMany", **changes)
    for line in ("storage.accessMode: ReadWriteOnce cannot", "storage.storageClass: fast cannot"):
        assert line in text
    assert "name that as storage.existingClaim" in text


def test_preflight_can_be_left_out() -> None:
    with api_server(kinds=KINDS) as url:
        assert "gateway.apiKeysSecret" in refusal(PRODUCTION, options=on(url))
        assert rendered(url, PRODUCTION, preflight="none")


@pytest.mark.parametrize("version", HELMS)
def test_an_autoscaler_keeps_the_servers_that_run(version: str) -> None:
    """Without a number in the manifest, an upgrade would reset it to Kubernetes' default of 1."""
    running = named("apps/v1", "StatefulSet", "demo-nemotron-server", spec={"replicas": 3})
    with api_server(running, *SECRETS, kinds=KINDS) as url:
        documents = rendered(url, PRODUCTION, version=version)
        assert find(documents, "StatefulSet")["spec"]["replicas"] == 3
    with api_server(*SECRETS, kinds=KINDS) as url:
        documents = rendered(url, PRODUCTION, version=version)
        assert "replicas" not in find(documents, "StatefulSet")["spec"]
