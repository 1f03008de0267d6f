"""Builds Dockerfiles as they are, with this machine's way to the registry of packages."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.containers.store import Store

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "build" / "docker"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
REVISION_LABEL = "org.opencontainers.image.revision"
VERSION = version("nemotron-triton")


@dataclass(frozen=True)
class Builder:
    """Builds images in a store."""

    store: Store
    revision: str
    mounts: dict[Path, str]
    """Files and folders of this machine that the commands see, with their places there."""
    wheels: Path
    """A folder of wheels that pip and uv use beside the registry's."""

    @classmethod
    def here(cls, store: Store, folder: Path) -> Builder:
        """Return a builder with settings of pip and uv, which it writes to a folder."""
        git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        done = subprocess.run(git, check=True, capture_output=True, text=True)
        wheels = folder / "wheels"
        wheels.mkdir()
        mounts = {wheels: "/stand-ins"}
        pip, uv = ["[global]"], ['find-links = ["/stand-ins"]']
        if certificates := os.environ.get("PIP_CERT"):
            mounts[Path(certificates)] = CERTIFICATES
            pip.append(f"cert = {CERTIFICATES}")
            uv.append("native-tls = true")
        if index := os.environ.get("PIP_INDEX_URL"):
            pip.append(f"index-url = {index}")
            uv.append(f'index-url = "{index}"')
        for name, place, lines in (("pip.conf", "/etc", pip), ("uv.toml", "/etc/uv", uv)):
            (folder / name).write_text("\n".join([*lines, ""]))
            mounts[folder / name] = f"{place}/{name}"
        return cls(store, done.stdout.strip(), mounts, wheels)

    def lane(self, name: str) -> str:
        """Build the Dockerfile of a lane, and return the name of the image."""
        return self.build(name, DOCKER / f"{name}.Dockerfile")

    def build(self, name: str, file: Path) -> str:
        """Build a Dockerfile, and return the name of the image."""
        image = f"localhost/nemotron-triton:test-{name}"
        arguments = {"VERSION": VERSION, "REVISION": self.revision}
        options = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        options += [f"--volume={path}:{place}:ro" for path, place in self.mounts.items()]
        # All layers are made anew: of those that are there buildah 1.28 takes each whatever the
        # arguments and the mounted stages are.
        flags = ("--pull-never", "--format=docker", "--layers", "--no-cache")
        names = (f"--file={file}", f"--tag={image}")
        self.store.call("buildah", "bud", *flags, *names, *options, ROOT)
        return image
