"""The conversion Job's downloads: from an S3 server, and from a mirror of a model hub."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.convert.nemo import unpack
from tests.helm.chart import CHART, Document, find, render
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


def check(pod: Pod, model: Path) -> None:
    """Check that all files are downloaded once and can be converted."""
    (volume,) = (path for path in pod.cluster.root.iterdir() if path.name.endswith("-models"))
    pod.run("download")
    source = volume / "source"

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


def test_s3(s3: str, model: Path, tmp_path: Path) -> None:
    aws = [str(python_tool("s3", "aws")), "--endpoint-url", s3, "s3"]
    region = {"AWS_DEFAULT_REGION": "us-east-1"}
    for command in (["mb", "s3://models"], ["sync", str(model), "s3://models/nemotron"]):
        environment = os.environ | S3_KEYS | region
        subprocess.run([*aws, *command], env=environment, check=True, capture_output=True)
    documents = render(
        TINY,
        model__source={
            "path": "",
            "s3": {"url": "s3://models/nemotron", "endpoint": s3, "secret": "secret"},
        },
    )
    check(converts(documents, tmp_path, S3_KEYS), model)


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
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": etag(file)}
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
            model__source={
                "path": "",
                "huggingFace": {
                    "repository": REPOSITORY,
                    "endpoint": f"http://127.0.0.1:{server.server_address[1]}",
                    "secret": "secret",
                },
            },
        )
        check(converts(documents, tmp_path, {"HF_TOKEN": TOKEN}), model)
        server.shutdown()


def test_nothing_is_fetched_where_the_model_is_there(tmp_path: Path) -> None:
    """Without a download, no pod of the release can connect to outside the cluster."""
    documents = render(TINY)
    job = find(documents, "Job", "-convert")
    assert "initContainers" not in job["spec"]["template"]["spec"]
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    assert len(policies) == 4
    for policy in policies:
        assert "Egress" in policy["policyTypes"]
        for rule in policy.get("egress") or []:
            inside = all("podSelector" in peer for peer in rule.get("to", [{}]))
            assert inside or {port["port"] for port in rule["ports"]} == {53}
