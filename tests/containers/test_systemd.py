"""The systemd unit, started by a systemd that runs in a container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.builder import ROOT, Builder
from tests.containers.store import Store
from tests.containers.stream import answering
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import until

NAME = "nemotron-test-systemd"
UNIT = ROOT / "build" / "systemd" / "nemotron.service"
DOCKERFILE = """
FROM {image}
USER 0
RUN apt-get update && apt-get install -y --no-install-recommends systemd
# The paths of docs/one-machine.md.
RUN ln -s /opt/venv/bin /opt/nemotron/bin \\
    && install -d -o nemotron -g nemotron /var/lib/nemotron && mkdir /var/lib/nemotron/engine
HEALTHCHECK NONE
"""
READY = "import urllib.request as r; r.urlopen('http://127.0.0.1:8003/health/ready')"


@pytest.fixture
def machine(
    store: Store, builder: Builder, cpu_image: str, models: Path, tmp_path: Path
) -> Iterator[str]:
    """The name of a container with systemd, in which the unit is there and not started."""
    file = tmp_path / "Dockerfile"
    file.write_text(DOCKERFILE.format(image=cpu_image))
    image = builder.build("systemd", file)
    options = (
        *("--rm", f"--name={NAME}", "--privileged", "--systemd=always", "--network=none"),
        *("--pull=never", "--shm-size=2g", "--entrypoint=/lib/systemd/systemd"),
        f"--volume={models / 'engine'}:/var/lib/nemotron/engine:ro",
        f"--volume={UNIT}:/etc/systemd/system/nemotron.service:ro",
    )

    def is_running() -> bool:
        _, state = store.try_to("podman", "exec", NAME, "systemctl", "is-system-running")
        return state.strip() in ("running", "degraded")

    with store.start("podman", "run", *options, image) as process:
        try:
            until(is_running, poll_seconds=1)
            yield NAME
        finally:
            store.try_to("podman", "rm", "--force", "--ignore", "--time=0", NAME)
            process.wait()


def test_it_starts_starts_again_and_drains(
    store: Store, machine: str, answers: list[ExactAnswer]
) -> None:
    def inside(*command: str) -> str:
        return store.call("podman", "exec", machine, *command)

    def state(name: str) -> str:
        return inside("systemctl", "show", f"--property={name}", "--value", "nemotron").strip()

    def log() -> str:
        return inside("journalctl", "--no-pager", "--unit=nemotron")

    def is_ready() -> bool:
        assert state("ActiveState") != "failed", log()
        return store.try_to("podman", "exec", machine, "python", "-c", READY)[0] == 0

    inside("systemctl", "enable", "--now", "nemotron")
    until(is_ready, explain=log, poll_seconds=1)
    first = state("MainPID")
    inside("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "nemotron")
    until(lambda: state("MainPID") not in ("0", first), explain=log, poll_seconds=1)
    until(is_ready, explain=log, poll_seconds=1)
    question = answers[0].question
    chat = ("nemotron", "chat", "--url", "127.0.0.1:8001", question.messages[-1].content)
    assert inside(*chat) == question.answer + "\n"
    with answering(store, machine):
        inside("systemctl", "stop", "nemotron")
    assert (state("Result"), state("ExecMainStatus")) == ("success", "0"), log()
    assert "draining" in log()
