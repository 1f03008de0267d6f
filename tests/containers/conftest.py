"""The store of images, and what is built in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.containers.bases import make_missing
from tests.containers.builder import Builder
from tests.containers.store import Store

USER = 10001
MODEL = "/opt/nemotron/tiny_nemotron.nemo"


@pytest.fixture(scope="session")
def store(request: pytest.FixtureRequest) -> Store:
    assert request.config.option.images, "make test-images names a folder and a Python"
    python = shutil.which(request.config.option.image_python)
    assert python, "name a Python 3.12 that has a shared library: make test-images IMAGE_PYTHON=…"
    store = Store.in_folder(Path(request.config.option.images))
    print("stand-ins:", *make_missing(store, Path(python)))
    return store


@pytest.fixture(scope="session")
def builder(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder.here(store, tmp_path_factory.mktemp("builder"))


@pytest.fixture(scope="session")
def cpu_image(builder: Builder) -> str:
    return builder.lane("cpu")


@pytest.fixture(scope="session")
def models(store: Store, cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model's engine, made as docs/one-machine.md says."""
    folder = tmp_path_factory.mktemp("models")
    os.chown(folder, USER, USER)
    mount = (f"--volume={folder}:/models",)
    checkpoint, engine = "/models/checkpoint", "/models/engine"
    store.run(cpu_image, "convert", MODEL, "-o", checkpoint, "--tp", "1", options=mount)
    store.run(cpu_image, "build", checkpoint, "-o", engine, "--profile", "cpu", options=mount)
    return folder
