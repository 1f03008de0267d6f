"""All commands of the rendered pods with the tiny model, in the order of a cluster."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron_client import Client, Generation
from tests.helm.chart import SEVERAL_PODS, TINY, Document, find, pod_templates, render
from tests.helm.cluster import IMAGE_MODEL, Cluster, Container, Pod
from tests.standins.container import make_triton
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.nemo_file import NEMO
from tests.waiting import until

FIRST_KEY, SECOND_KEY = "first-key", "second-key"


def free_ports(*names: str) -> dict[str, int]:
    with ExitStack() as stack:
        ports = {}
        for name in names:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports[name] = listener.getsockname()[1]
        return ports


ALIAS = "nvidia/nemotron-4-340b-instruct"
"""The gateway's own second name of the model."""


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    ports = free_ports("http", "grpc", "metrics", "health", "gateway")
    return SEVERAL_PODS | {
        "profileOverride": {"ports": ports, "limits": {"kv_cache_tokens": 16384}},
        "server__preStopSeconds": 1,
        "gateway__preStopSeconds": 1,
        "gateway__apiKeysSecret": "keys",
        "gateway__settings": {"model": "nemotron-by-its-settings"},
    }


@pytest.fixture(scope="module")
def documents(values: dict[str, Any]) -> list[Document]:
    return render(TINY, **values)


@pytest.fixture(scope="module")
def cluster(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    secrets = {"keys": {"keys": f"{FIRST_KEY}\n{SECOND_KEY}\n"}}
    image = {IMAGE_MODEL: NEMO}
    return Cluster(tmp_path_factory.mktemp("cluster"), documents, secrets, image)


def pod(cluster: Cluster, kind: str, ending: str = "") -> Pod:
    owner = find(cluster.documents, kind, ending)
    ((name, template),) = pod_templates([owner])
    return Pod(cluster, template, f"{name}-0")


@pytest.fixture(scope="module")
def built(cluster: Cluster) -> Cluster:
    """All pods start together, as in a cluster, and those that build wait for the checkpoint."""
    server, job = pod(cluster, "StatefulSet"), pod(cluster, "Job", "-build")
    with server.start("build") as first, job.start("build") as second:
        converted = pod(cluster, "Job", "-convert").run("convert")
        outputs = [first.wait(), second.wait()]
    assert "bytes, trtllm bf16 TP=1 PP=1" in converted
    assert [text.splitlines()[-1] for text in outputs] == [outputs[0].splitlines()[-1]] * 2
    (volume,) = cluster.root.glob("*-models")
    assert len(list((volume / "checkpoints").iterdir())) == 1
    assert len(list((volume / "engines").iterdir())) == 1
    return cluster


def test_jobs_that_run_again_leave_everything_as_it_is(built: Cluster) -> None:
    (volume,) = built.root.glob("*-models")

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in volume.rglob("*")}

    before = state()
    pod(built, "Job", "-convert").run("convert")
    pod(built, "Job", "-build").run("build")
    assert state() == before
    assert len(before) > 10


def test_from_the_first_start_to_the_last_drain(built: Cluster, answers: list[ExactAnswer]) -> None:
    gateways = pod(built, "Deployment")
    with (
        gateways.start("gateway") as gateway,
        pod(built, "StatefulSet").start("server") as server,
    ):
        gateway.wait_for("startupProbe")
        assert not gateway.probe("readinessProbe")
        assert not server.probe("readinessProbe")
        server.wait_for("startupProbe")
        server.wait_for("readinessProbe")
        assert server.probe("livenessProbe")
        test = Pod(built, find(built.documents, "Pod", "-test"), "test")
        question = test.container("ask-triton")["args"][-1]
        (answer,) = (
            answer for answer in answers if answer.question.messages[0].content == question
        )
        assert test.run("ask-triton") == answer.question.answer + "\n"
        gateway.wait_for("readinessProbe")
        assert test.run("ask-gateway") == answer.question.answer + "\n"
        assert gateway.probe("livenessProbe")
        with urllib.request.urlopen(f"{url(gateway)}/metrics") as page:
            assert b"nemotron_gateway_requests_total" in page.read()
        assert get_models(gateway, "another-key")[0] == 401
        assert models(gateway) == ["nemotron-by-its-settings", ALIAS]
        gateway.terminate()
        server.terminate()
        assert not server.probe("livenessProbe")
    assert "draining" in server.log.read_text()
    leftovers = [path.name for path in server.mounts["/tmp"].iterdir()]
    assert leftovers == ["triton.log"]


def get_models(container: Container, key: str) -> tuple[int, bytes]:
    """Return the status and the body of what a container's gateway answers about its models."""
    headers = {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url(container)}/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def models(container: Container, key: str = FIRST_KEY) -> list[str]:
    """Return the names of the models of a container's gateway."""
    status, body = get_models(container, key)
    assert status == 200, body
    return [model["id"] for model in json.loads(body)["data"]]


def revoke_the_first_key(pod: Pod, container: Container) -> None:
    """Change the Secret. The gateway, which is not restarted, then takes the other key only."""
    assert get_models(container, FIRST_KEY)[0] != 401
    pod.cluster.secrets["keys"] = {"keys": f"{SECOND_KEY}\n"}
    pod.refresh()
    until(lambda: get_models(container, FIRST_KEY)[0] == 401)
    assert get_models(container, SECOND_KEY)[0] != 401
    assert container.process.poll() is None


def test_a_key_that_is_revoked_no_longer_counts(cluster: Cluster) -> None:
    own_secrets = replace(cluster, root=cluster.root / "revoked", secrets=dict(cluster.secrets))
    gateways = pod(own_secrets, "Deployment")
    with gateways.start("gateway") as gateway:
        gateway.wait_for("startupProbe")
        revoke_the_first_key(gateways, gateway)


def test_engine_and_triton_in_two_containers(
    built: Cluster, values: dict[str, Any], answers: list[ExactAnswer], tmp_path: Path
) -> None:
    """A restart of one leaves the other alone, and both drain together."""
    changes = values | {"server__engine__separate": True, "gateway__placement": "beside"}
    make_triton(tmp_path / "tritonserver")
    image = built.image | {"/opt/tritonserver": tmp_path / "tritonserver"}
    cluster = Cluster(built.root, render(TINY, **changes), dict(built.secrets), image)
    ((_, template),) = pod_templates([find(cluster.documents, "StatefulSet")])
    split = Pod(cluster, template, "split-0")
    test = Pod(cluster, find(cluster.documents, "Pod", "-test"), "test-split")
    question = test.container("ask-triton")["args"][-1]
    (answer,) = (answer for answer in answers if answer.question.messages[0].content == question)

    def asks() -> None:
        split_log = test.folder / "ask-triton.log"
        split_log.unlink(missing_ok=True)
        assert test.run("ask-triton") == answer.question.answer + "\n"

    with ExitStack() as stack:
        engine = stack.enter_context(split.start("engine"))
        server = stack.enter_context(split.start("server"))
        assert "nvidia.com/gpu" not in json.dumps(server.spec)
        engine.wait_for("startupProbe")
        server.wait_for("readinessProbe")
        asks()
        assert models(server) == ["nemotron-by-its-settings", ALIAS]
        revoke_the_first_key(split, server)
        assert models(server, SECOND_KEY) == ["nemotron-by-its-settings", ALIAS]

        server.process.kill()
        server.process.wait()
        server = stack.enter_context(split.start("server"))
        server.wait_for("readinessProbe")
        assert engine.process.poll() is None
        assert engine.probe("livenessProbe")
        asks()

        engine.process.kill()
        engine.process.wait()
        until(lambda: not server.probe("readinessProbe"))
        assert not engine.probe("livenessProbe")
        engine = stack.enter_context(split.start("engine"))
        server.wait_for("readinessProbe")
        assert server.process.poll() is None
        asks()

        ports = values["profileOverride"]["ports"]
        with Client(f"127.0.0.1:{ports['grpc']}") as client:
            pieces = client.stream_complete(
                "<extra_id_1>Count", Generation(max_tokens=3000, end_id=0)
            )
            next(pieces)
            with ThreadPoolExecutor() as pool:  # the kubelet ends all containers at once
                ends = [pool.submit(container.terminate) for container in (engine, server)]
                assert list(pieces)[-1].num_output_tokens == 3000
                for end in ends:
                    end.result()


def url(container: Container) -> str:
    (port,) = (entry for entry in container.spec["ports"] if entry["name"] == "gateway")
    return f"http://127.0.0.1:{port['containerPort']}"


def test_a_source_that_is_not_there(cluster: Cluster) -> None:
    changes = SEVERAL_PODS | {"model__source__path": "/models/none.nemo"}
    wrong = Cluster(cluster.root, render(TINY, **changes))
    with pytest.raises(AssertionError, match=r"none\.nemo"):
        pod(wrong, "Job", "-convert").run("convert")
