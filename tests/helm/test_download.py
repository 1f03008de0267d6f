"""The conversion Job's downloads: from an S3 server, and from a mirror of a model hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.convert.nemo import unpack
from tests.helm.chart import CHART, SEVERAL_PODS, Document, find, render
from tests.helm.cluster import BIN, Cluster, Pod
from tests.tools import TOOLS, python_tool
from tests.waiting import until

TINY = CHART / "examples" / "cpu.yaml"
REPOSITORY = "nvidia/Nemotron-4-340B-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "a-token-of-the-mirror"
S3_KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked `.nemo`, as a hub has it."""
    return unpack(tmp_path_factory.mktemp("model") / "unpacked")


def converts(documents: list[Document], folder: Path, secrets: dict[str, str]) -> Pod:
    cluster = Cluster(folder, documents, {"secret": secrets}, programs=(TOOLS / "s3" / "bin", BIN))
    job = find(documents, "Job", "-convert")
    return Pod(cluster, job["spec"]["template"], "convert-0")


def source_folder(pod: Pod) -> Path:
    (volume,) = (path for path in pod.cluster.root.iterdir() if path.name.endswith("-models"))
    (source,) = (volume / "sources").iterdir()
    return source


def check(pod: Pod, model: Path) -> None:
    """Check that all files are downloaded once and can be converted."""
    pod.run("download")
    source = source_folder(pod)

    def state() -> dict[str, int]:
        files = (path for path in source.rglob("*") if path.is_file())
        return {
            str(path.relative_to(source)): path.stat().st_mtime_ns
            for path in files
            if ".cache" not in path.parts
        }

    expected = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    before = state()
    assert set(before) == expected
    pod.run("download")
    assert state() == before
    for container in pod.spec["initContainers"]:
        pod.run(container["name"])
    assert "TP=1 PP=1" in pod.run("convert")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of moto's S3 server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as file:
        command = [str(python_tool("s3", "moto_server")), "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:

            def accepts() -> bool:
                assert server.poll() is None, log.read_text()
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0

            until(accepts, explain=log.read_text)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def aws(s3: str, *command: str) -> None:
    program = [str(python_tool("s3", "aws")), "--endpoint-url", s3, "s3"]
    environment = os.environ | S3_KEYS | {"AWS_DEFAULT_REGION": "us-east-1"}
    subprocess.run([*program, *command], env=environment, check=True, capture_output=True)


def sums(folder: Path) -> str:
    """Return the SHA-256 of all files of a folder, as `sha256sum` writes them."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    done = subprocess.run(
        ["sha256sum", "--", *names], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_s3(s3: str, model: Path, tmp_path: Path) -> None:
    """Also what changes at the source: a file of the same size, and one that is gone."""
    bucket = "s3://models/nemotron"
    local = shutil.copytree(model, tmp_path / "local")
    (local / "SHA256SUMS").write_text(sums(model))
    (local / "notes").write_text("old")
    aws(s3, "mb", "s3://models")
    aws(s3, "sync", str(local), bucket)
    documents = render(
        TINY,
        **SEVERAL_PODS,
        model__source={
            "path": "",
            "checksums": "SHA256SUMS",
            "s3": {"url": bucket, "endpoint": s3, "secret": "secret"},
        },
    )
    pod = converts(documents, tmp_path / "cluster", S3_KEYS)
    check(pod, local)
    source = source_folder(pod)
    config = source / "model_config.yaml"
    changed = config.read_text().replace("num_layers: ", "num_layers:\t")
    assert changed != config.read_text()
    assert len(changed) == len(config.read_text())
    (local / "model_config.yaml").write_text(changed)
    aws(s3, "cp", str(local / "model_config.yaml"), f"{bucket}/model_config.yaml")
    aws(s3, "rm", f"{bucket}/notes")
    pod.run("download")
    assert config.read_text() == changed
    assert not (source / "notes").exists()
    with pytest.raises(AssertionError, match=r"model_config\.yaml: FAILED"):
        pod.run("check-sums")


def test_a_source_on_the_volume_is_compared_with_its_sums(model: Path, tmp_path: Path) -> None:
    documents = render(
        TINY,
        **SEVERAL_PODS,
        model__source={"path": "/models/nemotron", "checksums": "/models/sums"},
    )
    pod = converts(documents, tmp_path, {})
    (volume,) = (path for path in tmp_path.iterdir() if path.name.endswith("-models"))
    shutil.copytree(model, volume / "nemotron")
    (volume / "sums").write_text(sums(model))
    pod.run("check-sums")
    (volume / "sums").write_text("no sum\n")
    with pytest.raises(AssertionError, match="no properly formatted"):
        pod.run("check-sums")
    (volume / "sums").write_text(sums(model))
    weights = max((volume / "nemotron").rglob("*"), key=lambda path: path.stat().st_size)
    with weights.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(AssertionError, match="FAILED"):
        pod.run("check-sums")


class Hub(BaseHTTPRequestHandler):
    """A stand-in for a hub with one repository and one token, as far as `hf download` needs it."""

    folder: Path
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].removeprefix("/")
        files = {
            str(file.relative_to(self.folder)): file
            for file in self.folder.rglob("*")
            if file.is_file()
        }
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(HTTPStatus.UNAUTHORIZED, b"", body=body)
        elif path.startswith(f"api/models/{REPOSITORY}"):
            tree = "/tree/" in path
            listing = [
                {
                    "type": "file",
                    "path": name,
                    "size": file.stat().st_size,
                    "oid": etag(file),
                    "lfs": {
                        "oid": hashlib.sha256(file.read_bytes()).hexdigest(),
                        "size": file.stat().st_size,
                        "pointerSize": 130,
                    },
                }
                for name, file in files.items()
            ]
            siblings = [{"rfilename": name} for name in files]
            info = {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}
            self._send(HTTPStatus.OK, json.dumps(listing if tree else info).encode(), body=body)
        elif (name := path.partition(f"{REPOSITORY}/resolve/{COMMIT}/")[2]) in files or (
            name := path.partition(f"{REPOSITORY}/resolve/main/")[2]
        ) in files:
            headers = {"ETag": f'"{etag(files[name])}"', "X-Repo-Commit": COMMIT}
            self._send(HTTPStatus.OK, files[name].read_bytes(), headers, body=body)
        else:
            self._send(HTTPStatus.NOT_FOUND, b"", body=body)

    def _send(
        self,
        status: HTTPStatus,
        content: bytes,
        headers: dict[str, str] | None = None,
        *,
        body: bool,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def test_a_mirror_of_a_hub(model: Path, tmp_path: Path) -> None:
    handler = type("Handler", (Hub,), {"folder": model})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        documents = render(
            TINY,
            **SEVERAL_PODS,
            model__source={
                "path": "",
                "huggingFace": {
                    "repository": REPOSITORY,
                    "endpoint": f"http://127.0.0.1:{server.server_address[1]}",
                    "secret": "secret",
                },
            },
        )
        pod = converts(documents, tmp_path, {"HF_TOKEN": TOKEN})
        check(pod, model)
        source = source_folder(pod)
        killed = pod.start("check-download")
        killed.process.kill()  # at any moment: it changes nothing of the download
        killed.process.wait()
        shutil.rmtree(source / ".cache")  # as of files that were copied here
        pod.run("check-download")
        assert {path.name for path in source.parent.iterdir()} == {source.name}
        (source / "old").touch()
        with pytest.raises(AssertionError, match="old"):
            pod.run("check-download")
        (source / "old").unlink()
        weights = max(source.rglob("*"), key=lambda path: path.stat().st_size)
        with weights.open("r+b") as file:
            file.write(b"x")
        with pytest.raises(AssertionError, match=weights.name):
            pod.run("check-download")
        server.shutdown()


def test_nothing_is_fetched_where_the_model_is_there(tmp_path: Path) -> None:
    """Without a download, no pod of the release can connect to outside the cluster."""
    documents = render(TINY, **SEVERAL_PODS)
    job = find(documents, "Job", "-convert")
    assert "initContainers" not in job["spec"]["template"]["spec"]
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    assert len(policies) == 4
    for policy in policies:
        assert "Egress" in policy["policyTypes"]
        for rule in policy.get("egress") or []:
            inside = all("podSelector" in peer for peer in rule.get("to", [{}]))
            assert inside or {port["port"] for port in rule["ports"]} == {53, 5353}
