"""The Dockerfiles for GPUs, built as they are on stand-ins for NVIDIA's images.

What cannot be pulled here is only metadata in these: pip and uv see the versions that the library
asks for and must install ours beside them. Nothing of theirs runs.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.containers.bases import BASES, commit, write_metadata, write_wheel
from tests.containers.builder import DOCKER, VERSION, Builder
from tests.containers.conftest import USER
from tests.containers.contents import check_labels, listed_packages, packages
from tests.containers.store import Store
from tests.tiny_nemotron.answers import ExactAnswer

PYTHON, VLLM_PYTHON = "/usr/local/bin/python3", "/opt/vllm/bin/python"
SBOM = "/opt/nemotron/sbom.cdx.json"
ENGINE, TRITON = "nemotron-test-engine", "nemotron-test-triton"
SOCKET = "/run/nemotron/engine.sock"


def base_of(lane: str) -> str:
    """Return the name of the image that a Dockerfile's last stage begins with."""
    lines = (DOCKER / f"{lane}.Dockerfile").read_text().splitlines()
    name = [line for line in lines if line.startswith("FROM ")][-1].split()[1]
    (found,) = (base for base in BASES if base.removeprefix("docker.io/library/") == name)
    return found


@pytest.mark.parametrize("lane", ["tensorrt", "pytorch"])
def test_ours_beside_the_library(store: Store, builder: Builder, lane: str) -> None:
    image = builder.lane(lane)
    before = packages(store, base_of(lane), PYTHON)
    after = packages(store, image, PYTHON)
    assert {"torch", "tensorrt-llm"} <= before.keys()
    assert {name: after.get(name) for name in before} == before
    assert {"msgspec", "tritonclient", "starlette"} <= after.keys()
    assert listed_packages(store, image, SBOM) == after
    check_labels(builder, image, after["nemotron-triton"])


def test_a_conflict_stops_the_build(store: Store, builder: Builder) -> None:
    name = base_of("tensorrt")
    image = store.call("buildah", "images", "--quiet", "--no-trunc", name).strip()
    try:
        with tempfile.TemporaryDirectory(dir=store.folder) as folder:
            write_metadata(Path(folder), {"typer": "0.12.0"})
            commit(store, name, image, Path(folder))
        with pytest.raises(AssertionError, match="typer"):
            builder.lane("tensorrt")
    finally:
        store.call("buildah", "tag", image, name)


def test_vllm_in_an_environment_of_its_own(store: Store, builder: Builder) -> None:
    """Neither PyTorch nor vLLM is installed, which are gigabytes, but wheels of their names."""
    write_wheel(builder.wheels, "torch", "2.99.0")
    write_wheel(builder.wheels, "vllm", "0.32.0")
    image = builder.lane("vllm")
    own, library = packages(store, image, PYTHON), packages(store, image, VLLM_PYTHON)
    assert listed_packages(store, image, SBOM) == own
    assert listed_packages(store, image, "/opt/nemotron/sbom-vllm.cdx.json") == library
    assert {"msgspec", "nemotron-triton", "torch"} <= own.keys()
    assert {"msgspec", "nemotron-triton", "vllm"} <= library.keys()
    assert store.run(image, "--version") == f"nemotron {VERSION}\n"
    check_labels(builder, image, VERSION)
    code = "import nemotron_engine.__main__"
    store.run(image, "-c", code, options=(f"--entrypoint={VLLM_PYTHON}",))


@pytest.fixture(scope="module")
def triton_image(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of triton.Dockerfile, with the Triton of the wheel and the NumPy that this needs.

    The image has NumPy 2, with which the stubs of Triton 2.51 end at their start; those of the
    Triton that it is made for were not at hand.
    """
    file = tmp_path_factory.mktemp("numpy") / "Dockerfile"
    install = "RUN /opt/venv/bin/pip install --no-cache-dir 'numpy==1.26.*'"
    file.write_text(f"FROM {builder.lane('triton')}\nUSER 0\n{install}\nUSER {USER}:{USER}\n")
    return builder.build("numpy-1", file)


def test_what_the_triton_image_holds(store: Store, builder: Builder) -> None:
    image = builder.lane("triton")
    installed = packages(store, image, "/opt/venv/bin/python")
    assert listed_packages(store, image, SBOM) == installed
    check_labels(builder, image, VERSION)
    assert not {"openvino", "nvidia-pytriton"} & installed.keys()


def test_triton_beside_an_engine_in_another_container(
    store: Store,
    triton_image: str,
    cpu_image: str,
    models: Path,
    tmp_path: Path,
    answers: list[ExactAnswer],
) -> None:
    profile = tmp_path / "profile.yaml"
    text = (DOCKER.parent / "profiles" / "cpu.yaml").read_text()
    profile.write_text(text + "triton: /opt/tritonserver\n")
    socket = tmp_path / "socket"
    socket.mkdir()
    socket.chmod(0o700)
    os.chown(socket, USER, USER)
    shared = (f"--volume={models}:/models:ro", f"--volume={socket}:/run/nemotron")
    own = (f"--volume={profile}:/profile.yaml:ro", "--shm-size=2g")
    engine = ("-m", "nemotron_engine", "--lane=cpu", f"--socket={SOCKET}", "/models/engine")
    serve = ("serve", "/models/engine", "--profile=/profile.yaml", f"--engine-socket={SOCKET}")
    by_python = ("--entrypoint=/opt/venv/bin/python3",)
    with (
        store.running(cpu_image, *engine, name=ENGINE, options=(*shared, *by_python)) as loaded,
        store.running(
            triton_image, *serve, "--no-gateway", name=TRITON, options=(*shared, *own)
        ) as server,
    ):
        store.wait_until_healthy(TRITON, server)
        question = answers[0].question
        chat = ("nemotron", "chat", "--url", "127.0.0.1:8001", question.messages[-1].content)
        assert store.call("podman", "exec", TRITON, *chat) == question.answer + "\n"
        for name, process in ((TRITON, server), (ENGINE, loaded)):
            store.call("podman", "stop", "--time=120", name)
            output, _ = process.communicate()
            assert process.returncode == 0, output
