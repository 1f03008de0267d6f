"""`make demo` as a reader runs it: on its usual ports, in a network of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import ROOT, script
from tests.waiting import WAIT, until

READY = "The server stays up."
# A make inside `make test` would otherwise take over the outer one's flags and chatter.
ENVIRONMENT = {name: value for name, value in os.environ.items() if "MAKE" not in name} | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONUNBUFFERED": "1",
}
NAMESPACE = (
    *("unshare", "--map-root-user", "--net", "--pid", "--mount-proc", "--fork", "--kill-child"),
    *("bash", "-c"),
)
"""A network in which no port is in use, whatever else runs; all processes in it end together."""


def _top_of_the_checkout() -> list[str]:
    """Return what a reader's clone has already, so that no block may write to it by accident."""
    command = ["git", "ls-tree", "--name-only", "HEAD"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


class DemoServer:
    """The running demo. Its output goes to `log`; it is killed at the end of the context."""

    def __init__(self, folder: Path, command: str) -> None:
        self.log = folder / "demo.log"
        self._folder = folder
        self._command = command

    def __enter__(self) -> DemoServer:
        # What a change of the locks makes necessary is installed before there is no network.
        subprocess.run(["make", "-s", ".venv/.user"], cwd=ROOT, env=ENVIRONMENT, check=True)
        inside = f"ip link set lo up && {self._command}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*NAMESPACE, inside],
                cwd=ROOT,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            until(self._is_ready, explain=self.output)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._kill()

    def output(self) -> str:
        return self.log.read_text()

    def interrupt(self) -> None:
        """Send what Ctrl-C sends, to every process of the demo, and wait for their end."""
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(WAIT)

    def run(self, page: str, label: str) -> subprocess.CompletedProcess[str]:
        """Run a page's blocks with a label in a fresh shell, in a folder like the checkout."""
        folder = self._folder / f"{page.replace('/', '-')}-{label}"
        folder.mkdir()
        for name in (*_top_of_the_checkout(), ".venv", "demo"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "blocks.sh").write_text(script(page, label))
        return subprocess.run(
            [*self._enter(folder), "bash", "blocks.sh"],
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT,
        )

    def _enter(self, folder: Path) -> list[str]:
        inside = self._child()
        namespaces = ("--user", "--net", "--pid", "--mount", "--preserve-credentials")
        return ["nsenter", f"--target={inside}", *namespaces, f"--wd={folder}"]

    def _child(self) -> int:
        """Return a process inside the namespace: the child of `unshare`."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(path.read_text().split()[0])

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.output()
        return READY in self.output()

    def _kill(self) -> None:
        self.process.kill()  # `unshare --kill-child` ends everything inside
        self.process.wait()
