"""The chart itself: Helm's lint, the values that it refuses, and what an upgrade may change."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts.helm_chart import files

from nemotron_build.profile import load_profile, shipped_profiles
from tests.helm.chart import (
    CHART,
    EXAMPLES,
    HELMS,
    TINY,
    VALUES,
    Document,
    containers,
    find,
    helm,
    pod_templates,
    render,
)

SOURCE: dict[str, object] = {"model__source__path": "/models/model.nemo"}
ONE_NODE = CHART / "examples" / "h100-fp8.yaml"
TWO_NODES = CHART / "examples" / "two-nodes.yaml"
PRODUCTION = CHART / "examples" / "production.yaml"


def test_what_follows_from_something_else_is_up_to_date() -> None:
    """The profiles, the schema and README's table; `python scripts/helm_chart.py` renews them."""
    stale = [path.name for path, text in files().items() if path.read_text() != text]
    assert stale == []
    assert {path.stem for path in (CHART / "profiles").iterdir()} == set(shipped_profiles())


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("values", [None, *VALUES], ids=lambda path: path.stem if path else "none")
def test_lint(version: str, values: Path | None) -> None:
    options = ["--values", values] if values else []
    done = helm(version, "lint", "--strict", CHART, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr


@pytest.mark.parametrize("version", HELMS)
def test_the_package_renders_as_the_folder_does(version: str, tmp_path: Path) -> None:
    done = helm(version, "package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.iterdir()
    assert render(PRODUCTION, version=version, chart=package) == render(PRODUCTION, version="helm4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"servers": {}}, "servers"),
        ({"server__replica": 2}, "replica"),
        ({"profile": "h100"}, "profile"),
        ({"profileOverride": {"limits": {"max_batch": 3}}}, "max_batch"),
        ({"profileOverride": {"lane": "cpu"}}, "lane"),
        ({"profileOverride": {"timeouts": {"drain": -1}}}, "drain"),
        ({"server__replicas": "two"}, "replicas"),
        ({"server__sharedMemory": "lots"}, "sharedMemory"),
        ({"build__resources__limits__gpu": 8}, "gpu"),
        ({"autoscaling__kind": "vpa"}, "kind"),
        ({"model__source__s3__url": "https://bucket"}, "url"),
    ],
    ids=str,
)
@pytest.mark.parametrize("version", HELMS)
def test_what_the_schema_refuses(version: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(AssertionError, match=message) as refusal:
        render(version=version, **(SOURCE | changes))
    assert "schema" in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "model.source: name exactly one"),
        (SOURCE | {"model__source__s3__url": "s3://a/b"}, "model.source: name exactly one"),
        (SOURCE | {"name": "n" * 36}, "longer than 35 letters"),
        (SOURCE | {"server__replicas": 2}, "several servers need gateway.placement=beside"),
        (SOURCE | {"autoscaling__kind": "keda"}, "several servers need gateway.placement=beside"),
    ],
    ids=["none", "two", "name", "replicas", "autoscaling"],
)
def test_what_the_templates_refuse(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        render(**changes)


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_profile_is_what_the_server_reads(name: str, tmp_path: Path) -> None:
    """The pod's profile is the shipped one, except for the address and the startup time."""
    documents = render(profile=name, **SOURCE)
    rendered = tmp_path / "profile.yaml"
    rendered.write_text(find(documents, "ConfigMap", "-profile")["data"]["profile.yaml"])
    served, shipped = load_profile(str(rendered)), load_profile(name)
    assert served.address == "0.0.0.0"
    assert served.timeouts.startup > shipped.timeouts.startup
    same = {"address": shipped.address, "timeouts": shipped.timeouts}
    assert served.model_copy(update=same) == shipped
    workload = "LeaderWorkerSet" if "pp2" in name else "StatefulSet"
    for role, template in pod_templates([find(documents, workload)]):
        (main,) = template["spec"]["containers"]
        gpus = main["resources"].get("limits", {}).get("nvidia.com/gpu")
        assert gpus == {"cpu": None, "laptop-gpu": 1}.get(name, 8), role
        assert main["image"].endswith(f"-{served.lane}")


def test_the_start_is_given_the_time_that_the_size_needs() -> None:
    documents = render(ONE_NODE, server__readGiBPerSecond=0.1)
    profile = yaml.safe_load(find(documents, "ConfigMap", "-profile")["data"]["profile.yaml"])
    assert profile["timeouts"]["startup"] == 3600 + 3175  # half of 635 GiB, at 0.1 a second
    (server,) = find(documents, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    probe = server["startupProbe"]
    allowed_seconds = probe["periodSeconds"] * probe["failureThreshold"]
    assert allowed_seconds >= profile["timeouts"]["startup"] + profile["timeouts"]["stall"]


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_grace_is_longer_than_the_drain(values: Path) -> None:
    documents = render(values)
    profile = yaml.safe_load(find(documents, "ConfigMap", "-profile")["data"]["profile.yaml"])
    for kind in ("StatefulSet", "LeaderWorkerSet"):
        for _, template in pod_templates(
            [document for document in documents if document["kind"] == kind]
        ):
            (main,) = template["spec"]["containers"]
            pause = float(main["lifecycle"]["preStop"]["exec"]["command"][1])
            grace = template["spec"]["terminationGracePeriodSeconds"]
            drain = profile["timeouts"]["drain"] if main["name"] == "server" else 0
            assert grace > pause + drain


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_pods_are_restricted(values: Path) -> None:
    """Pods meet Kubernetes' Pod Security Standard `restricted`, with a read-only root."""
    for _, template in pod_templates(render(values)):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] >= 10000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim"}
        for container in containers(template):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_nodes_of_one_group() -> None:
    documents = render(TWO_NODES, server__replicas=2, gateway__placement="beside")
    group = find(documents, "LeaderWorkerSet")
    assert group["spec"]["replicas"] == 2
    assert group["spec"]["leaderWorkerTemplate"]["size"] == 2
    leader, worker = (template for _, template in pod_templates([group]))
    (server,) = leader["spec"]["containers"]
    hosts = next(text for text in server["args"] if text.startswith("--hosts="))
    assert hosts == f"--hosts=localhost,$(POD_NAME)-1.{group['metadata']['name']}"
    assert server["env"][1]["name"] == "POD_NAME"
    for template in (leader, worker):
        limits = template["spec"]["containers"][0]["resources"]["limits"]
        assert limits["rdma/hca_shared_devices_a"] == 1
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_two_releases_in_one_namespace(values: Path) -> None:
    def keys(name: str) -> set[tuple[str, str]]:
        return {
            (document["kind"], document["metadata"]["name"])
            for document in render(values, name=name)
        }

    assert keys("a") & keys("b") == set()
    for ours, theirs in itertools.permutations(render(values, name=n) for n in ("a", "b")):
        labels = [template["metadata"]["labels"] for _, template in pod_templates(theirs)]
        for selector in selectors(ours):
            assert not [
                pod_labels for pod_labels in labels if selector.items() <= pod_labels.items()
            ]


def selectors(documents: list[Document]) -> list[dict[str, str]]:
    selectors_so_far = []
    for document in documents:
        spec = document.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if selector and document["kind"] != "PersistentVolumeClaim":
            selectors_so_far.append(selector.get("matchLabels", selector))
    assert len(selectors_so_far) >= 5
    return selectors_so_far


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_the_same_values_are_no_change(values: Path) -> None:
    assert render(values) == render(values, version="helm3")


def test_a_new_version_of_the_chart_restarts_nothing(tmp_path: Path) -> None:
    newer = shutil.copytree(CHART, tmp_path / "chart")
    (newer / "Chart.yaml").write_text(
        (CHART / "Chart.yaml").read_text().replace("version: 0.1.0\nappV", "version: 0.2.0\nappV")
    )
    before, after = render(ONE_NODE), render(ONE_NODE, chart=newer)
    assert before != after
    workloads = ("StatefulSet", "Deployment")
    pods = [
        list(pod_templates([document for document in documents if document["kind"] in workloads]))
        for documents in (before, after)
    ]
    assert pods[0] == pods[1]


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_what_cannot_be_changed_is_not(values: Path) -> None:
    """An upgrade keeps selectors, and a changed Job has another name."""
    after: dict[str, Any] = {
        "image__version": "9.9.9",
        "server__preStopSeconds": 20,
        "convert__resources__limits__memory": "1Gi",
    }
    before, changed = render(values), render(values, **after)

    def fixed(documents: list[Document]) -> dict[str, Any]:
        kinds = ("StatefulSet", "Deployment")
        immutable = ("selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates")
        return {
            document["metadata"]["name"]: {key: document["spec"].get(key) for key in immutable}
            for document in documents
            if document["kind"] in kinds
        }

    assert fixed(before) == fixed(changed)
    names = [
        {document["metadata"]["name"] for document in documents if document["kind"] == "Job"}
        for documents in (before, changed)
    ]
    assert names[0] & names[1] == set()


def test_a_new_engine_beside_the_old_one() -> None:
    def engine(**changes: object) -> str:
        (server,) = find(render(ONE_NODE, **changes), "StatefulSet")["spec"]["template"]["spec"][
            "containers"
        ]
        return str(server["args"][0])

    now = engine()
    more = {"server__replicas": 3, "gateway__placement": "beside"}
    assert engine(**more, profileOverride={"timeouts": {"drain": 100}}) == now
    assert engine(profileOverride={"limits": {"max_batch_size": 8}}) != now
    assert engine(image__version="9.9.9") != now
    assert engine(model__source__path="/models/other.nemo") != now


def test_a_metric_that_exists() -> None:
    """The autoscaler reads the metric that the rule records and the adapter exposes."""
    documents = render(PRODUCTION, autoscaling__kind="hpa")
    (metric,) = find(documents, "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    rules = find(documents, "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert name in {rule["record"] for rule in rules}
    adapter = yaml.safe_load((CHART / "examples" / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert rule["seriesQuery"].startswith(name + "{")
    scaled = find(render(PRODUCTION), "ScaledObject")["spec"]["scaleTargetRef"]
    workload = find(render(PRODUCTION), "StatefulSet")
    assert scaled["name"] == workload["metadata"]["name"]
    assert "replicas" not in workload["spec"]


def test_streams_are_not_cut() -> None:
    documents = render(PRODUCTION)
    seconds = load_profile("h100-fp8-tp8").timeouts.request
    annotations = find(documents, "Ingress")["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert annotations[prefix + "proxy-read-timeout"] == str(seconds)
    assert annotations[prefix + "proxy-buffering"] == "off"
    (rule,) = find(documents, "HTTPRoute")["spec"]["rules"]
    assert set(rule["timeouts"].values()) == {f"{seconds}s"}


def test_secrets_come_from_secrets() -> None:
    text = json.dumps(render(PRODUCTION))
    assert '"kind": "Secret"' not in text
    for name in ("nemotron-keys", "s3-credentials", "nemotron-tls"):
        assert f'"{name}"' in text


def test_the_examples_are_what_is_tested() -> None:
    assert {path.stem for path in EXAMPLES} == {path.stem for path in VALUES} | {
        "prometheus-adapter"
    }
    assert TINY in VALUES
