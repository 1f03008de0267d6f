"""Fetch the chat page's libraries, and the tests' axe, from the npm registry: `npm pack`.

Each folder's `versions.json` has their versions and hashes, which are checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("gateway/nemotron_gateway/page/vendor", "tests/gateway/axe")


def fetch(library: dict[str, str], folder: Path, temporary: Path) -> None:
    package = f"{library['package']}@{library['version']}"
    command = ["npm", "pack", "--silent", "--pack-destination", str(temporary), package]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    archive = temporary / done.stdout.split()[-1]
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if integrity != library["integrity"]:
        sys.exit(f"{package} has another hash: {integrity}")
    with tarfile.open(archive) as files:
        content = files.extractfile(f"package/{library['path']}")
        assert content is not None, library
        data = content.read()
    if hashlib.sha256(data).hexdigest() != library["sha256"]:
        sys.exit(f"{package}/{library['path']} has another hash")
    (folder / library["file"]).write_bytes(data)


for name in FOLDERS:
    folder = ROOT / name
    with tempfile.TemporaryDirectory() as temporary:
        for library in json.loads((folder / "versions.json").read_text()):
            fetch(library, folder, Path(temporary))
