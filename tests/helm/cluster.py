"""A stand-in for a kubelet, which runs the containers of rendered pods on this machine.

Commands, arguments, environment, probes, preStop and grace come from the YAML. Mount paths are
mapped to folders, Secrets and ConfigMaps to files, Services and Pods to addresses.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helm.chart import Document
from tests.waiting import WAIT, until

BIN = Path(sys.executable).parent
IMAGE_MODEL = "/opt/nemotron/tiny_nemotron.nemo"
INHERITED = ("LANG", "PIP_CERT")


@dataclass
class Cluster:
    """The folders that pods mount, and what the pods need to know of the cluster."""

    root: Path
    documents: list[Document]
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    image: dict[str, Path] = field(default_factory=dict)
    """Files of the image, by their paths there, with their paths on this machine."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Addresses by the names of pods."""
    programs: tuple[Path, ...] = (BIN,)
    """Folders on the PATH of the image."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the image."""

    def config(self, name: str) -> dict[str, str]:
        (data,) = (
            document["data"]
            for document in self.documents
            if (document["kind"], document["metadata"]["name"]) == ("ConfigMap", name)
        )
        return dict(data)

    def services(self) -> list[str]:
        names = [
            document["metadata"]["name"]
            for document in self.documents
            if document["kind"] == "Service"
        ]
        return sorted(names, key=len, reverse=True)


class Pod:
    """One pod: its volumes as folders, its containers as processes."""

    def __init__(self, cluster: Cluster, template: Document, name: str) -> None:
        self.cluster = cluster
        self.spec = template["spec"]
        self.name = name
        self.folder = cluster.root / name
        self.folder.mkdir(exist_ok=True, parents=True)
        self.volumes = {
            volume["name"]: self._volume(volume) for volume in self.spec.get("volumes", [])
        }

    def _volume(self, volume: dict[str, Any]) -> Path:
        if "persistentVolumeClaim" in volume:  # shared by all
            path = self.cluster.root / volume["persistentVolumeClaim"]["claimName"]
        else:
            path = self.folder / volume["name"]
        path.mkdir(exist_ok=True)
        self._publish(volume, path)
        return path

    def refresh(self) -> None:
        """Write changed Secrets and ConfigMaps into the volumes, as the kubelet does at times."""
        for volume in self.spec.get("volumes", []):
            self._publish(volume, self.volumes[volume["name"]])

    def _publish(self, volume: dict[str, Any], path: Path) -> None:
        """Write what a volume projects, in the kubelet's layout: one link replaces all files."""
        content = self._content(volume, path)
        if not content:
            return
        place = Path(tempfile.mkdtemp(prefix="..", dir=path))
        for name, text in content.items():
            (place / name).write_text(text)
            (place / name).chmod(0o600)  # on this machine its owner reads it
            if not (path / name).is_symlink():
                (path / name).symlink_to(Path("..data", name))
        published, new = path / "..data", path / "..data_tmp"
        replaced = published.resolve() if published.is_symlink() else None
        new.symlink_to(place.name)
        new.rename(published)
        if replaced is not None:
            shutil.rmtree(replaced)

    def _content(self, volume: dict[str, Any], path: Path) -> dict[str, str]:
        """Return the texts of a volume's Secrets and ConfigMaps by their names."""
        mounts = {
            mount["mountPath"]: path
            for container in self.spec["containers"]
            for mount in container["volumeMounts"]
            if mount["name"] == volume["name"]
        }
        content: dict[str, str] = {}
        for source in volume.get("projected", {}).get("sources", [volume]):
            if "configMap" in source:
                content |= self.cluster.config(source["configMap"]["name"])
            elif "secret" in source:
                secret = source["secret"]
                content |= self.cluster.secrets[secret.get("secretName") or secret["name"]]
        return {name: self.mapped(text, mounts) for name, text in content.items()}

    def container(self, name: str) -> dict[str, Any]:
        containers = [*self.spec.get("initContainers", []), *self.spec["containers"]]
        (container,) = (container for container in containers if container["name"] == name)
        return dict(container)

    def start(self, name: str, *place: str) -> Container:
        """Start a container. `place` is a command that runs another command on another machine."""
        spec = self.container(name)
        mounts = {mount["mountPath"]: self.volumes[mount["name"]] for mount in spec["volumeMounts"]}
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        path = [*map(str, self.cluster.programs), "/usr/local/bin", "/usr/bin", "/bin"]
        environment |= self.cluster.environment
        environment["PATH"] = os.pathsep.join(path)
        environment["TMPDIR"] = str(mounts["/tmp"])
        for source in spec.get("envFrom", []):
            environment |= self.cluster.secrets[source["secretRef"]["name"]]
        for entry in spec.get("env", []):
            environment[entry["name"]] = self._value(entry, mounts)
        command = [
            self.mapped(self._expanded(part, environment), mounts)
            for part in [*spec["command"], *spec.get("args", [])]
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
        return Container(self, spec, process, log, environment, mounts)

    def run(self, name: str) -> str:
        """Run a container until it ends successfully, and return its output."""
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
        return self.mapped(entry["value"], mounts)

    @staticmethod
    def _expanded(text: str, environment: dict[str, str]) -> str:
        return re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], text)

    def mapped(self, text: str, mounts: dict[str, Path]) -> str:
        """Replace paths and services of the cluster in a text by those of this machine."""
        places = {**self.cluster.image, **mounts}
        places.pop("/dev/shm", None)  # every process of this machine has it
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
        """Run a probe like the kubelet. A container without the probe is a bug of the test."""
        if command := self.spec[kind].get("exec", {}).get("command"):
            mapped = [self.pod.mapped(part, self.mounts) for part in command]
            done = subprocess.run(
                mapped, env=self.environment, capture_output=True, check=False, timeout=WAIT
            )
            return done.returncode == 0
        get = self.spec[kind]["httpGet"]
        (port,) = (entry for entry in self.spec["ports"] if entry["name"] == get["port"])
        url = f"http://127.0.0.1:{port['containerPort']}{get['path']}"
        try:
            with urllib.request.urlopen(
                url, timeout=self.spec[kind].get("timeoutSeconds", 1)
            ) as answer:
                return bool(200 <= answer.status < 400)
        except OSError:
            return False

    def wait_for(self, kind: str) -> None:
        """Wait until the probe succeeds, and run it more often than its period."""

        def succeeds() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.probe(kind)

        until(succeeds, explain=self.log.read_text)

    def terminate(self) -> None:
        """Run preStop and send SIGTERM; the container must end before SIGKILL is due."""
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
