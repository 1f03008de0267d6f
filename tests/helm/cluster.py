"""A stand-in for a kubelet: it runs the containers of rendered pods here, as they are rendered.

Commands, arguments, environment, probes, preStop and grace come from the YAML. What is mapped is
where they find themselves: mount paths to folders, Secrets and ConfigMaps to files, Services and
Pods to addresses.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helm.chart import Document

BIN = Path(sys.executable).parent
IMAGE_MODEL = "/opt/nemotron/tiny_nemotron.nemo"
INHERITED = ("LANG", "PIP_CERT")


@dataclass
class Cluster:
    """Folders for what pods mount, and what the cluster would know."""

    root: Path
    documents: list[Document]
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    image: dict[str, Path] = field(default_factory=dict)
    """Files of the image that lie elsewhere here."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Names of pods, and their addresses."""
    programs: tuple[Path, ...] = (BIN,)
    """Folders that the image has on its PATH."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of the image."""

    def config(self, name: str) -> dict[str, str]:
        (found,) = (
            one["data"]
            for one in self.documents
            if (one["kind"], one["metadata"]["name"]) == ("ConfigMap", name)
        )
        return dict(found)

    def services(self) -> list[str]:
        names = [one["metadata"]["name"] for one in self.documents if one["kind"] == "Service"]
        return sorted(names, key=len, reverse=True)


class Pod:
    """One pod: its volumes as folders, its containers as processes."""

    def __init__(self, cluster: Cluster, template: Document, name: str) -> None:
        self.cluster = cluster
        self.spec = template["spec"]
        self.name = name
        self.folder = cluster.root / name
        self.folder.mkdir(exist_ok=True)
        self.volumes = {one["name"]: self._volume(one) for one in self.spec.get("volumes", [])}

    def _volume(self, volume: dict[str, Any]) -> Path:
        if "persistentVolumeClaim" in volume:  # shared by all
            path = self.cluster.root / volume["persistentVolumeClaim"]["claimName"]
        else:
            path = self.folder / volume["name"]
        path.mkdir(exist_ok=True)
        sources = volume.get("projected", {}).get("sources", [volume])
        mounts = {
            mount["mountPath"]: path
            for container in self.spec["containers"]
            for mount in container["volumeMounts"]
            if mount["name"] == volume["name"]
        }
        for source in sources:
            content: dict[str, str] = {}
            if "configMap" in source:
                content = self.cluster.config(source["configMap"]["name"])
            elif "secret" in source:
                secret = source["secret"]
                content = self.cluster.secrets[secret.get("secretName") or secret["name"]]
            for name, text in content.items():
                (path / name).write_text(self._mapped(text, mounts))
                (path / name).chmod(0o600)  # its owner is who reads it here
        return path

    def container(self, name: str) -> dict[str, Any]:
        everyone = [*self.spec.get("initContainers", []), *self.spec["containers"]]
        (found,) = (one for one in everyone if one["name"] == name)
        return dict(found)

    def start(self, name: str, *place: str) -> Container:
        """`place` is a command that runs another one elsewhere, such as on a second machine."""
        one = self.container(name)
        mounts = {mount["mountPath"]: self.volumes[mount["name"]] for mount in one["volumeMounts"]}
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        path = [*map(str, self.cluster.programs), "/usr/local/bin", "/usr/bin", "/bin"]
        environment |= self.cluster.environment
        environment["PATH"] = os.pathsep.join(path)
        environment["TMPDIR"] = str(mounts["/tmp"])
        for source in one.get("envFrom", []):
            environment |= self.cluster.secrets[source["secretRef"]["name"]]
        for entry in one.get("env", []):
            environment[entry["name"]] = self._value(entry, mounts)
        command = [
            self._mapped(self._expanded(part, environment), mounts)
            for part in [*one["command"], *one.get("args", [])]
        ]
        log = self.folder / f"{name}.log"
        with log.open("a") as file:
            process = subprocess.Popen(
                [*place, *command],
                env=environment,
                cwd=mounts["/tmp"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return Container(self, one, process, log, environment, mounts)

    def run(self, name: str) -> str:
        """To its end, which must be a good one; what it has printed."""
        return self.start(name).wait()

    def _value(self, entry: dict[str, Any], mounts: dict[str, Path]) -> str:
        source = entry.get("valueFrom", {})
        if "secretKeyRef" in source:
            return self.cluster.secrets[source["secretKeyRef"]["name"]][
                source["secretKeyRef"]["key"]
            ]
        if "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "metadata.name"
            return self.name
        return self._mapped(entry["value"], mounts)

    @staticmethod
    def _expanded(text: str, environment: dict[str, str]) -> str:
        return re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], text)

    def _mapped(self, text: str, mounts: dict[str, Path]) -> str:
        """The same text for this machine, where it names paths and services of the cluster."""
        places = {**self.cluster.image, **mounts}
        places.pop("/dev/shm", None)  # every process has that one here
        if places:
            insides = "|".join(sorted(map(re.escape, places), key=len, reverse=True))
            text = re.sub(rf"(?<![\w/.])({insides})(?![\w-])", lambda m: str(places[m[1]]), text)
        for name, address in self.cluster.hosts.items():
            text = text.replace(name, address)
        for service in self.cluster.services():
            text = re.sub(rf"(?<![\w.-]){service}(?=:\d)", "127.0.0.1", text)
        return text


@dataclass
class Container:
    pod: Pod
    spec: dict[str, Any]
    process: subprocess.Popen[bytes]
    log: Path
    environment: dict[str, str]
    mounts: dict[str, Path]

    def wait(self, seconds: float = 240) -> str:
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
        assert code == 0, self.log.read_text()
        return self.log.read_text()

    def probe(self, kind: str) -> bool:
        """As the kubelet asks; a probe that is not there is a bug of the test."""
        get = self.spec[kind]["httpGet"]
        (port,) = (one for one in self.spec["ports"] if one["name"] == get["port"])
        url = f"http://127.0.0.1:{port['containerPort']}{get['path']}"
        try:
            with urllib.request.urlopen(
                url, timeout=self.spec[kind].get("timeoutSeconds", 1)
            ) as answer:
                return bool(200 <= answer.status < 400)
        except OSError:
            return False

    def wait_for(self, kind: str) -> None:
        """As long as the probe allows. Its period is the cluster's; here it is asked more often."""
        probe = self.spec[kind]
        deadline = time.monotonic() + probe["periodSeconds"] * probe.get("failureThreshold", 3) + 60
        while not self.probe(kind):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def terminate(self) -> None:
        """preStop, SIGTERM, and SIGKILL for which there must be no need."""
        stop = self.spec["lifecycle"]["preStop"]["exec"]["command"]
        grace = self.pod.spec["terminationGracePeriodSeconds"]
        subprocess.run(stop, env=self.environment, check=True, timeout=grace)
        assert self.process.poll() is None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(grace) in (0, -signal.SIGTERM), self.log.read_text()

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.wait()
