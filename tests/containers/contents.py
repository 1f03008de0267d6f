"""What an image says of itself, compared with what is in it."""

from __future__ import annotations

import json

from packaging.utils import canonicalize_name as normalized

from tests.containers.builder import REVISION_LABEL, Builder
from tests.containers.store import Store


def packages(store: Store, image: str, python: str) -> dict[str, str]:
    """Return the versions of the packages of a Python in an image, by their normalized names."""
    arguments = ("-m", "pip", "--disable-pip-version-check", "list", "--format=json")
    listed = json.loads(store.run(image, *arguments, options=(f"--entrypoint={python}",)))
    return {normalized(entry["name"]): entry["version"] for entry in listed}


def listed_packages(store: Store, image: str, file: str) -> dict[str, str]:
    """Return the versions that a list in an image has (a CycloneDX file)."""
    document = json.loads(store.run(image, file, options=("--entrypoint=cat",)))
    assert document["bomFormat"] == "CycloneDX"
    components = document["components"]
    return {normalized(entry["name"]): entry["version"] for entry in components}


def check_labels(builder: Builder, image: str, installed: str) -> None:
    """The labels have the installed version and the revision of the code."""
    labels = builder.store.inspect(image)["Labels"]
    assert labels["org.opencontainers.image.version"] == installed
    assert labels[REVISION_LABEL] == builder.revision
