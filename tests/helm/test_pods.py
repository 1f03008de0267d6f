"""The chart's pods: profile, rights, time limits, resources, and what values can add to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nemotron_build.profile import load_profile, shipped_profiles
from tests.helm.chart import (
    CHART,
    ONE_NODE,
    SOURCE,
    TINY,
    TWO_NODES,
    VALUES,
    containers,
    find,
    pod_templates,
    render,
)

GPUS = {"cpu": None, "laptop": None, "laptop-gpu": 1, "one-gpu": 1, "one-gpu-fp8": 1}
"""GPUs of a pod by profile, where they are not eight."""


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
        assert gpus == GPUS.get(name, 8), role
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
            for container in template["spec"]["containers"]:
                pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
                grace = template["spec"]["terminationGracePeriodSeconds"]
                drain = 0 if container["name"] == "worker" else profile["timeouts"]["drain"]
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


def test_what_every_pod_can_be_given() -> None:
    """One value of each kind, on the pods of the server, the conversion and the gateway."""
    common = {
        "runtimeClassName": "nvidia",
        "priorityClassName": "serving",
        "podLabels": {"team": "answers"},
        "annotations": {"note": "mine"},
        "nodeSelector": {"pool": "gpu"},
        "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
        "envFrom": [{"configMapRef": {"name": "more"}}],
        "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "podOverlay": {"spec": {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}},
    }
    parts = ("server", "convert", "gateway")
    changes = {
        f"{part}__{name}": value for part in parts for name, value in common.items()
    } | SOURCE
    documents = render(ONE_NODE, **changes)
    pods = [
        find(documents, kind, ending)["spec"]["template"]
        for kind, ending in (("StatefulSet", ""), ("Job", "-convert"), ("Deployment", ""))
    ]
    for pod in pods:
        spec, metadata = pod["spec"], pod["metadata"]
        assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("nvidia", "serving")
        assert spec["nodeSelector"]["pool"] == "gpu"
        assert spec["hostNetwork"] is True
        assert spec["dnsPolicy"] == "ClusterFirstWithHostNet"
        assert metadata["labels"]["team"] == "answers"
        assert metadata["labels"]["app.kubernetes.io/name"] == "nemotron"
        assert metadata["annotations"]["note"] == "mine"
        assert {"name": "scratch", "emptyDir": {}} in spec["volumes"]
        for container in containers(pod):
            assert {"name": "NCCL_DEBUG", "value": "INFO"} in container["env"]
            assert {"name": "HOME", "value": "/tmp"} in container["env"]
            assert {"configMapRef": {"name": "more"}} in container["envFrom"]
            assert {"name": "scratch", "mountPath": "/scratch"} in container["volumeMounts"]
            assert {"name": "models", "mountPath": "/models"}.items() <= max(
                container["volumeMounts"], key=lambda mount: mount["mountPath"] == "/models"
            ).items()


def test_an_overlay_is_merged_by_name() -> None:
    overlay = {
        "metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "rdma"}},
        "spec": {
            "terminationGracePeriodSeconds": 1000,
            "securityContext": {"supplementalGroups": [44]},
            "containers": [
                {
                    "name": "server",
                    "env": [{"name": "HOME", "value": "/scratch"}],
                    "resources": {"limits": {"rdma/hca": 1}},
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp", "subPath": "a"}],
                },
                {"name": "sidecar", "image": "busybox:1"},
            ],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
        },
    }
    before = find(render(ONE_NODE), "StatefulSet")["spec"]["template"]
    after = find(render(ONE_NODE, server__podOverlay=overlay), "StatefulSet")["spec"]["template"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    assert after["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "rdma"
    assert "checksum/profile" in after["metadata"]["annotations"]
    spec = after["spec"]
    assert spec["terminationGracePeriodSeconds"] == 1000
    assert spec["securityContext"]["supplementalGroups"] == [44]
    assert spec["securityContext"]["runAsNonRoot"] is True
    server, sidecar = spec["containers"]
    assert sidecar == {"name": "sidecar", "image": "busybox:1"}
    assert server["args"] == before["spec"]["containers"][0]["args"]
    assert server["env"] == [{"name": "HOME", "value": "/scratch"}]
    limits = before["spec"]["containers"][0]["resources"]["limits"]
    assert server["resources"]["limits"] == limits | {"rdma/hca": 1}
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    assert mounts["/tmp"]["subPath"] == "a"
    assert len(mounts) == len(before["spec"]["containers"][0]["volumeMounts"])
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["tmp"]["emptyDir"] == {"sizeLimit": "1Gi"}
    assert len(volumes) == len(before["spec"]["volumes"])


def test_openshift_chooses_the_users() -> None:
    for _, template in pod_templates(render(ONE_NODE, CHART / "examples" / "openshift.yaml")):
        context = template["spec"]["securityContext"]
        assert not context.keys() & {"runAsUser", "runAsGroup", "fsGroup"}
        assert context["runAsNonRoot"] is True


def test_images_by_digest() -> None:
    digests = {"cpu": "sha256:" + "a" * 64, "tensorrt": "sha256:" + "b" * 64}
    for _, template in pod_templates(render(ONE_NODE, image__digests=digests)):
        for container in containers(template):
            _, _, digest = container["image"].partition("@")
            lane = container["image"].partition("@")[0].rpartition("-")[2]
            assert digest == digests[lane]


def test_a_service_account_of_ones_own() -> None:
    identity = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}
    account = find(render(ONE_NODE, serviceAccount__annotations=identity), "ServiceAccount")
    assert account["metadata"]["annotations"] == identity
    documents = render(ONE_NODE, serviceAccount={"create": False, "name": "mine"})
    assert "ServiceAccount" not in {document["kind"] for document in documents}
    for _, template in pod_templates(documents):
        assert template["spec"]["serviceAccountName"] == "mine"


def test_the_tiny_model_needs_one_pod() -> None:
    """So that on a small node nothing waits for what has no room, or holds the volume."""
    documents = render(TINY)
    ((_, server),) = pod_templates([find(documents, "StatefulSet")])
    assert {document["kind"] for document in documents} & {"Job", "Deployment"} == set()
    names = [container["name"] for container in containers(server)]
    assert names == ["convert", "build", "server"]
