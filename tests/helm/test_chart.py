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
    ONE_NODE,
    PARTS,
    PRODUCTION,
    SOURCE,
    TINY,
    VALUES,
    Document,
    find,
    helm,
    pod_templates,
    render,
)

SCALED: dict[str, object] = {"autoscaling__kind": "keda", "gateway__placement": "beside"}


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
        ({"server__podOverlay": {"spec": {"hostNetwerk": True}}}, "hostNetwerk"),
        ({"server__podOverlay": {"kind": "Pod"}}, "kind"),
        ({"server__podOverlay": {"spec": {"containers": [{"image": "x"}]}}}, "name"),
        ({"gateway__settings": {"limits": {"request": 3}}}, "request"),
        ({"gateway__settings": {"port": 80}}, "port"),
        ({"image__digests": {"cpu": "latest"}}, "digests"),
        ({"podSecurityContext__privileged": True}, "privileged"),
        ({"preflight": "job"}, "preflight"),
        ({"autoscaling__scaleUpSeconds": 3600}, "scaleUpSeconds"),
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
        (
            SOURCE | {"gateway__settings": {"files": {"folder": "/files"}}},
            "files.folder needs gateway.replicas=1",
        ),
        (
            SOURCE | SCALED | {"server__replicas": 3, "autoscaling__minReplicas": 2},
            r"autoscaling.minReplicas: less than server.replicas \(3\)",
        ),
        (SOURCE | {"storage__accessMode": "ReadWriteOnce"}, "wait for each other for ever"),
        (
            SOURCE | SCALED | {"convert__place": "server"},
            "several servers would convert at the same time",
        ),
        (
            SOURCE | {"profile": "h100-bf16-tp8-pp2", "server__engine__separate": True},
            "server.engine.separate: an engine on several nodes",
        ),
        (
            SOURCE | {"server__podLabels": {"app.kubernetes.io/component": "mine"}},
            "app.kubernetes.io/component selects the pods and cannot be changed",
        ),
    ],
    ids=str,
)
def test_what_the_templates_refuse(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        render(**changes)


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
    assert {path.stem for path in EXAMPLES} == {path.stem for path in VALUES} | set(PARTS)
    assert TINY in VALUES


def test_scaling_up_waits_for_a_server_to_load() -> None:
    keda = find(render(PRODUCTION), "ScaledObject")["spec"]["advanced"]
    hpa = find(render(PRODUCTION, autoscaling__kind="hpa"), "HorizontalPodAutoscaler")["spec"]
    for behavior in (keda["horizontalPodAutoscalerConfig"]["behavior"], hpa["behavior"]):
        assert behavior["scaleUp"]["policies"] == [
            {"type": "Pods", "value": 1, "periodSeconds": 1800}
        ]


def test_settings_of_the_gateway() -> None:
    """They reach a gateway in either place, and a change of them restarts its pod."""
    seen = set()
    for kind, placement in (("Deployment", "own"), ("StatefulSet", "beside")):
        for limit in (7, 8):
            documents = render(
                ONE_NODE,
                gateway__placement=placement,
                gateway__settings={"limits": {"requests": limit}},
            )
            config = find(documents, "ConfigMap", "-gateway")["data"]["settings.yaml"]
            assert yaml.safe_load(config) == {"limits": {"requests": limit}}
            template = find(documents, kind)["spec"]["template"]
            (container,) = template["spec"]["containers"]
            (option,) = (text for text in container["args"] if "settings" in text)
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert str(Path(option.partition("=")[2]).parent) in mounts
            seen.add(json.dumps(template["metadata"]["annotations"], sort_keys=True))
    assert len(seen) == 4


def test_one_gateway_has_the_folder_of_files() -> None:
    """The next one would wait for this one, and this one for the next one to be ready."""
    settings = {"files": {"folder": "/files"}}
    strategies = [
        find(render(**SOURCE, **more), "Deployment")["spec"]["strategy"]
        for more in ({}, {"gateway__replicas": 1, "gateway__settings": settings})
    ]
    assert strategies == [
        {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        {"type": "Recreate"},
    ]


def test_a_source_has_its_own_folder() -> None:
    def folder(**source: object) -> str:
        job = find(render(ONE_NODE, model__source={"path": "", **source}), "Job", "-convert")
        spec = job["spec"]["template"]["spec"]
        (convert,) = spec["containers"]
        for container in spec.get("initContainers", []):
            assert any(convert["args"][0] in text for text in container["args"])
        return str(convert["args"][0])

    sources: list[dict[str, object]] = [
        {"s3": {"url": "s3://a/b"}},
        {"s3": {"url": "s3://a/c"}},
        {"s3": {"url": "s3://a/b", "endpoint": "https://minio.example"}},
        {"huggingFace": {"repository": "a/b"}},
        {"huggingFace": {"repository": "a/b", "revision": "v2"}},
        {"path": "/models/a.nemo"},
    ]
    assert len({folder(**source) for source in sources}) == len(sources)
