"""A server over two nodes: the rendered leader and worker, with real sshd, mpirun and Triton.

The second node is a network namespace with a host name of its own. Stand-ins are the GPUs and
TensorRT-LLM, as in tests/serve/test_tensorrt_lane.py.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from nemotron_core.errors import NemotronError
from nemotron_serve.hosts import wait_until_known
from tests.build.test_tensorrt_lane import H100
from tests.helm.chart import CHART, find, pod_templates, render
from tests.helm.cluster import BIN, IMAGE_MODEL, Cluster, Pod
from tests.helm.test_run import free_ports
from tests.standins.container import make_container
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.nemo_file import NEMO
from tests.tools import debian_program
from tests.waiting import WAIT, until

LEADER = "demo-nemotron-server-0"
WORKER = f"{LEADER}-1.demo-nemotron-server"
RANK = re.compile(r"python3 -m tensorrt_llm\.llmapi\.mgmn_(leader|worker)_node")
SUBNET = f"10.213.{secrets.randbelow(256)}"
"""Another one each time, because a run that was killed leaves its network behind."""
HERE, THERE = f"{SUBNET}.1", f"{SUBNET}.2"


@dataclass(frozen=True)
class Machine:
    """A network namespace with its own host name and the files of this machine."""

    address: str
    enter: tuple[str, ...]


@contextmanager
def second_machine() -> Iterator[Machine]:
    ip = debian_program("ip")
    token = secrets.token_hex(3)
    space, near, far = f"nemotron-{token}", f"near{token}", f"far{token}"

    def run(*arguments: str) -> None:
        subprocess.run([ip, *arguments], check=True, capture_output=True)

    try:
        run("netns", "add", space)
    except subprocess.CalledProcessError:
        assert "CI" not in os.environ, "no network namespaces here"
        pytest.skip("*** no network namespaces here: root with CAP_NET_ADMIN makes them ***")
    try:
        run("link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        run("address", "add", f"{HERE}/30", "dev", near)
        run("link", "set", near, "up")
        for command in (
            ("address", "add", f"{THERE}/30", "dev", far),
            ("link", "set", far, "up"),
            ("link", "set", "lo", "up"),
        ):
            run("-netns", space, *command)
        named = ("unshare", "--uts", "sh", "-c", 'hostname worker; exec "$@"', "sh")
        yield Machine(THERE, (ip, "netns", "exec", space, *named))
    finally:
        run("netns", "delete", space)


def ssh_secret(folder: Path) -> dict[str, str]:
    """Return the content of the Secret that docs/kubernetes.md says how to create."""
    key = folder / "id_ed25519"
    make = [debian_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(make, check=True)
    public = key.with_suffix(".pub").read_text()
    return {
        "id_ed25519": key.read_text(),
        "id_ed25519.pub": public,
        "known_hosts": f"* {public}",
    }


def ranks(root: Path) -> list[psutil.Process]:
    """Return the ranks of the server whose files are in `root`."""

    def belongs(process: psutil.Process) -> bool:
        if not RANK.search(" ".join(process.info["cmdline"] or ())):
            return False
        return str(root) in " ".join(process.environ().values())

    return [process for process in psutil.process_iter(["cmdline"]) if belongs(process)]


def host_name(process: psutil.Process) -> str:
    command = ["nsenter", "--target", str(process.pid), "--uts", "hostname"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_server_over_two_nodes(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, answers: list[ExactAnswer]
) -> None:
    container = make_container(tmp_path / "container", gpu=H100, gpus=4, version="1.2.1")
    environment = {
        "PYTHONPATH": container.environment["PYTHONPATH"],
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    documents = render(
        CHART / "examples" / "two-nodes.yaml",
        storage__existingClaim="models",
        model__source__path=IMAGE_MODEL,
        server__preStopSeconds=1,
        profileOverride={
            "split": {"tp": 4, "pp": 2, "nodes": 2, "gpus_per_node": 4},
            "triton": str(container.triton),
            "ports": free_ports("http", "grpc", "metrics", "health", "gateway"),
        },
    )
    root = tmp_path_factory.mktemp("nodes")
    cluster = Cluster(
        root,
        documents,
        secrets={"nemotron-ssh": ssh_secret(tmp_path)},
        image={IMAGE_MODEL: NEMO},
        hosts={WORKER: THERE},
        programs=(container.root / "bin", BIN),
        environment=environment,
    )
    convert = find(documents, "Job", "-convert")["spec"]["template"]
    Pod(cluster, convert, "convert-0").run("convert")
    (_, leader), (_, worker) = pod_templates([find(documents, "LeaderWorkerSet")])
    leading = Pod(cluster, leader, LEADER)
    leading.run("build")
    Path("/run/sshd").mkdir(exist_ok=True)  # only root's sshd wants it
    with (
        second_machine() as machine,
        Pod(cluster, worker, f"{LEADER}-1").start("worker", *machine.enter) as daemon,
        leading.start("server") as server,
    ):
        server.wait_for("startupProbe")
        hosts = sorted([os.uname().nodename] * 4 + ["worker"] * 4)
        workers = ranks(root)
        assert sorted(map(host_name, workers)) == hosts
        test = Pod(cluster, find(documents, "Pod", "-test"), "test")
        (answer,) = (
            answer for answer in answers if answer.question.messages[0].content == "Who are you?"
        )
        assert test.run("ask-triton") == answer.question.answer + "\n"
        next(process for process in workers if host_name(process) == "worker").kill()
        until(lambda: not any(process.is_running() for process in workers))
        until(lambda: len(ranks(root)) == len(hosts), poll_seconds=0.2)
        workers = ranks(root)
        assert sorted(map(host_name, workers)) == hosts
        server.wait_for("readinessProbe")
        assert test.run("ask-triton").endswith(answer.question.answer + "\n")
        server.terminate()
        until(lambda: not any(process.is_running() for process in workers))
        assert daemon.process.poll() is None


def test_hosts_that_do_not_fit(engine_bf16: Path) -> None:
    nemotron = str(Path(sys.executable).with_name("nemotron"))
    command = [nemotron, "serve", str(engine_bf16), "--hosts", "a,b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "2 hosts, but the engine runs on 1 nodes [--hosts]: leave it out" in done.stderr


def test_a_worker_that_is_not_there_yet() -> None:
    stop = threading.Event()
    with pytest.raises(NemotronError, match="no such host"):
        wait_until_known(["nobody.invalid"], 0, stop)
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        wait_until_known(["nobody.invalid"], WAIT, stop)
