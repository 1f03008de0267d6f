"""The CPU lane's image, built from its Dockerfile as it is and run as compose.yaml runs it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import yaml

from tests.containers.builder import DOCKER, Builder
from tests.containers.conftest import USER
from tests.containers.contents import check_labels, listed_packages, packages
from tests.containers.store import LIMITED, Store
from tests.containers.stream import answering
from tests.tiny_nemotron.answers import ExactAnswer

COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["server"]
KEY = "a-key"
ASK_GATEWAY = f"""
import urllib.request as r
url = "http://127.0.0.1:1424/v1/models"
print(r.urlopen(r.Request(url, headers={{"Authorization": "Bearer {KEY}"}})).status)
"""


def test_what_it_says_of_itself(store: Store, cpu_image: str, builder: Builder) -> None:
    name, version = store.run(cpu_image, "--version").split()
    assert name == "nemotron"
    check_labels(builder, cpu_image, version)
    installed = packages(store, cpu_image, "/opt/venv/bin/python")
    assert listed_packages(store, cpu_image, "/opt/nemotron/sbom.cdx.json") == installed
    assert installed["nemotron-triton"] == version
    assert "cyclonedx-bom" not in installed


def test_a_change_of_code_is_a_small_layer(store: Store, cpu_image: str) -> None:
    history = store.call("podman", "history", "--no-trunc", "--format=json", cpu_image)
    sizes = {entry["CreatedBy"]: entry["size"] for entry in json.loads(history)}
    (code,) = (size for command, size in sizes.items() if "/wheels/*.whl" in command)
    packages_size = max(size for command, size in sizes.items() if "COPY dir" in command)
    assert 0 < code < 20_000_000
    assert packages_size > 100_000_000


def test_it_has_no_rights(store: Store, cpu_image: str) -> None:
    script = "id -u; touch /opt/nemotron/x || echo read-only; touch /tmp/x && echo writable"
    printed = store.run(cpu_image, "-c", script, options=("--entrypoint=sh",)).splitlines()
    assert printed[0] == str(USER)
    assert printed[-2:] == ["read-only", "writable"]


def compose_options(models: Path, keys: Path) -> tuple[str, ...]:
    """Return what compose.yaml asks for besides LIMITED, as options of `podman run`."""
    rights = [f"--tmpfs={mount}" for mount in COMPOSE["tmpfs"]]
    rights += [f"--cap-drop={name}" for name in COMPOSE["cap_drop"]]
    rights += [f"--security-opt={text.removesuffix(':true')}" for text in COMPOSE["security_opt"]]
    rights += ["--read-only"] if COMPOSE["read_only"] else []
    assert set(rights) == set(LIMITED) - {"--network=none", "--pull=never"}
    return (
        *(f"--env={name}={text}" for name, text in COMPOSE["environment"].items()),
        f"--shm-size={COMPOSE['shm_size']}",
        f"--volume={models}:/models:ro",
        f"--volume={keys}:/run/secrets/keys:ro",
    )


def test_it_serves_and_drains(
    store: Store, cpu_image: str, models: Path, tmp_path: Path, answers: list[ExactAnswer]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    os.chown(keys, USER, USER)
    minutes = COMPOSE["stop_grace_period"]
    assert minutes.endswith("m")
    grace = 60 * int(minutes[:-1])
    name = "nemotron-test-cpu"

    def inside(*command: str) -> str:
        return store.call("podman", "exec", name, *command)

    options = compose_options(models, keys)
    with store.running(cpu_image, *COMPOSE["command"], name=name, options=options) as server:
        store.wait_until_healthy(name, server)
        question = answers[0].question
        asked = inside("nemotron", "chat", "--url", "127.0.0.1:8001", question.messages[-1].content)
        assert asked == question.answer + "\n"
        assert inside("python", "-c", ASK_GATEWAY) == "200\n"
        with answering(store, name):
            began = time.monotonic()
            store.call("podman", "stop", f"--time={grace}", name)
            print(f"stopped after {time.monotonic() - began:.1f} s of {grace} s")
        output, _ = server.communicate()
        assert "draining" in output
        assert server.returncode == 0, output  # and not 137, which is SIGKILL's
