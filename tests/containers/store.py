"""A store of images of its own, in which buildah builds and podman runs.

Nothing is pulled: where the store lacks a base of a Dockerfile, `tests.containers.bases` makes a
stand-in for it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tools import debian_program
from tests.waiting import until

LIMITED = (
    *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    *("--tmpfs=/tmp:exec", "--network=none", "--pull=never"),
)
"""Options of `podman run`: the image's own user without any right, as in the chart's pods."""
LIMITS = ("nofile=20000:20000", "nproc=10000:10000")
SETTINGS = {
    "storage.conf": """
[storage]
driver = "overlay"
graphroot = "{folder}/images"
runroot = "{folder}/run"
""",
    "containers.conf": """
[containers]
default_ulimits = {limits}
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
""",
    "registries.conf": """
unqualified-search-registries = ["docker.io"]
short-name-mode = "disabled"
""",
}
"""Files of settings by their names."""
VARIABLES = {
    "CONTAINERS_STORAGE_CONF": "storage.conf",
    "CONTAINERS_CONF": "containers.conf",
    "CONTAINERS_REGISTRIES_CONF": "registries.conf",
}


@dataclass(frozen=True)
class Store:
    """Images in a folder."""

    folder: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Store:
        """Return the store in a folder, which may have images of before."""
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()  # buildah begins other processes elsewhere
        for name, text in SETTINGS.items():
            filled = text.format(folder=folder, limits=json.dumps(LIMITS))
            (folder / name).write_text(filled)
        store = cls(folder)
        store.errors.write_text("")
        return store

    @property
    def environment(self) -> dict[str, str]:
        """Variables that let buildah and podman use this store."""
        files = {name: str(self.folder / file) for name, file in VARIABLES.items()}
        return os.environ | files | {"TMPDIR": str(self.folder), "BUILDAH_ISOLATION": "chroot"}

    @property
    def errors(self) -> Path:
        """File with what buildah, podman and the containers wrote to standard error."""
        return self.folder / "errors.log"

    @contextmanager
    def start(self, program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        """Run buildah or podman beside the test."""
        with (
            self.errors.open("a") as errors,
            subprocess.Popen(
                [debian_program(program), *map(str, arguments)],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def try_to(self, program: str, *arguments: object) -> tuple[int, str]:
        """Return the exit code and the output of buildah or podman."""
        with self.start(program, *arguments) as process:
            output, _ = process.communicate()
            return process.returncode, output

    def call(self, program: str, *arguments: object) -> str:
        """Return the output of buildah or podman, which must succeed."""
        code, output = self.try_to(program, *arguments)
        assert code == 0, output[-2000:] + self.errors.read_text()[-4000:]
        return output

    def has(self, image: str) -> bool:
        """Return whether the store has an image of this name."""
        return bool(self.call("buildah", "images", "--quiet", "--filter", f"reference={image}"))

    def inspect(self, image: str) -> dict[str, Any]:
        """Return the configuration of an image."""
        found = json.loads(self.call("podman", "image", "inspect", image))
        return dict(found[0]["Config"])

    def run(self, image: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """Return the output of a container that ends successfully."""
        return self.call("podman", "run", "--rm", *LIMITED, *options, image, *arguments)

    @contextmanager
    def running(
        self, image: str, *arguments: str, name: str, options: tuple[str, ...] = ()
    ) -> Iterator[subprocess.Popen[str]]:
        """Run a container with a name. What is yielded has its output and its exit code."""
        options = ("--rm", f"--name={name}", *LIMITED, *options)
        with self.start("podman", "run", *options, image, *arguments) as process:
            try:
                yield process
            finally:
                self.try_to("podman", "rm", "--force", "--ignore", "--time=0", name)

    def wait_until_healthy(self, name: str, process: subprocess.Popen[str]) -> None:
        """Return when the image's own health check succeeds in a running container."""

        def is_healthy() -> bool:
            assert process.poll() is None, self.errors.read_text()
            return self.try_to("podman", "healthcheck", "run", name)[0] == 0

        until(is_healthy, poll_seconds=1)
