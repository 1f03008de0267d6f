"""Stand-ins for the images that the Dockerfiles begin with, where these cannot be pulled.

Each is a Debian by debootstrap with this machine's Python 3.12 in `/usr/local`, as in Docker's own
image of Python. Those of NVIDIA's images have the Triton of the wheel nvidia-pytriton, and of the
library only the metadata of its packages, so that pip and uv take these as installed. Packages
that only Ubuntu has are empty.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import canonicalize_name as normalized

from nemotron_serve.exposure import VERSION_FILE, WHEEL_VERSION
from tests.containers.builder import ROOT
from tests.containers.store import Store
from tests.tools import debian_program

DEBIAN = "bookworm"
LIBRARIES = (
    *("ca-certificates", "libbz2-1.0", "libcrypt1", "libexpat1", "libffi8", "liblzma5"),
    *("libncursesw6", "libreadline8", "libsqlite3-0", "libssl3", "libuuid1", "zlib1g"),
)
"""Debian's packages that Python's own modules are linked with."""
UBUNTU = (
    *("libarchive13t64", "libcurl4t64", "libre2-10", "libpython3.12"),
    *("python3", "python3-dev", "python3-venv"),
)
"""Packages of Ubuntu 24.04 that the Dockerfiles install, and that this Debian has not."""
CONSTRAINTS = ROOT / "tests" / "images" / "constraints"
TORCH = {"torch": "2.9.0"}


@dataclass(frozen=True)
class Base:
    """What a stand-in has besides Debian and Python."""

    constraints: str | None = None
    """Constraints with what the library in the image asks for."""
    packages: dict[str, str] = field(default_factory=dict)
    """Versions of further packages whose metadata it has."""
    has_triton: bool = False
    is_ubuntu: bool = False


BASES = {
    "docker.io/library/python:3.12-slim-bookworm": Base(),
    "docker.io/library/ubuntu:24.04": Base(is_ubuntu=True),
    "nvcr.io/nvidia/tritonserver:26.07-py3": Base(has_triton=True, is_ubuntu=True),
    "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3": Base(
        "tensorrt_llm-1.2", {**TORCH, "tensorrt-llm": "1.2.1"}, has_triton=True, is_ubuntu=True
    ),
    "nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc26": Base(
        "tensorrt_llm-1.3", {**TORCH, "tensorrt-llm": "1.3.0rc26"}, is_ubuntu=True
    ),
}
"""Stand-ins by the names of the images."""


def make_missing(store: Store, python: Path) -> list[str]:
    """Make a stand-in for each base that the store lacks. Return the names of all stand-ins."""
    for name, base in BASES.items():
        if not store.has(name):
            with tempfile.TemporaryDirectory(dir=store.folder) as folder:
                content = Path(folder, "content")
                _fill(content, base)
                commit(store, name, _debian(store, python), content)
    return [name for name in BASES if "stand-in" in (store.inspect(name)["Labels"] or {})]


def commit(store: Store, name: str, parent: str, content: Path) -> None:
    """Commit an image that adds files to another one."""
    container = store.call("buildah", "from", "--pull-never", parent).strip()
    store.call("buildah", "copy", container, content, "/")
    if any(content.rglob("*.deb")):
        store.call("buildah", "run", container, "--", "sh", "-c", "dpkg -i /debs/* && rm -r /debs")
    store.call("buildah", "config", "--label=stand-in=yes", container)
    store.call("buildah", "commit", "--rm", container, name)


def _debian(store: Store, python: Path) -> str:
    """Return the name of the Debian with Python 3.12, which is made at first."""
    name = "localhost/debian-with-python:3.12"
    if store.has(name):
        return name
    with tempfile.TemporaryDirectory(dir=store.folder) as folder:
        root = Path(folder, "root")
        options = ("--variant=minbase", f"--include={','.join(LIBRARIES)}")
        subprocess.run([debian_program("debootstrap"), *options, DEBIAN, root], check=True)
        _copy_python(python, root / "usr" / "local")
        subprocess.run(["chroot", root, "ldconfig"], check=True)
        pip = ("/usr/local/bin/python3", "-m", "ensurepip", "--default-pip")
        subprocess.run(["chroot", root, *pip], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(root / "var" / "cache" / "apt" / "archives")
        container = store.call("buildah", "from", "scratch").strip()
        store.call("buildah", "copy", container, root, "/")
        path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        store.call("buildah", "config", f"--env={path}", "--cmd=python3", container)
        store.call("buildah", "commit", "--rm", container, name)
    return name


def _copy_python(python: Path, target: Path) -> None:
    """Copy a Python with its shared library, without what is only there to build and test it."""
    code = (
        "import json, sys, sysconfig as s; print(json.dumps([sys.base_prefix, s.get_config_vars("
        "'VERSION', 'Py_ENABLE_SHARED')]))"
    )
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    prefix, (version, is_shared) = json.loads(done.stdout)
    assert (version, is_shared) == ("3.12", 1), f"{python} is no Python 3.12 with a shared library"
    unneeded = shutil.ignore_patterns("__pycache__", "test", "idlelib", "config-*", "site-packages")
    shutil.copytree(f"{prefix}/lib/python3.12", target / "lib" / "python3.12", ignore=unneeded)
    (target / "lib" / "python3.12" / "site-packages").mkdir()
    for library in Path(prefix, "lib").glob("libpython3*.so*"):
        shutil.copy(library, target / "lib", follow_symlinks=False)
    shutil.copy(Path(prefix, "bin", "python3.12").resolve(), target / "bin" / "python3.12")
    for name in ("python", "python3"):
        (target / "bin" / name).symlink_to("python3.12")


def _fill(content: Path, base: Base) -> None:
    """Write what a stand-in has besides Debian and Python."""
    content.mkdir()
    packages = dict(base.packages)
    if base.constraints is not None:
        packages |= dict(_resolved(CONSTRAINTS / f"{base.constraints}.txt"))
    write_metadata(content, packages)
    if base.has_triton:
        _copy_triton(content)
    if base.is_ubuntu:
        for package in UBUNTU:
            _empty_package(package, content / "debs")


def write_metadata(content: Path, packages: dict[str, str]) -> None:
    """Write the metadata of packages, as though they were installed."""
    site = content / "usr" / "local" / "lib" / "python3.12" / "site-packages"
    for name, version in packages.items():
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / "METADATA").write_text(text)
        (folder / "RECORD").write_text("")
        (folder / "INSTALLER").write_text("stand-in\n")


def write_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel without content, with a tag that pip and uv prefer to those of real wheels."""
    tag = "cp312-cp312-manylinux_2_17_x86_64"
    info = f"{name}-{version}.dist-info"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: false\nTag: {tag}\n",
        "RECORD": "".join(f"{info}/{file},,\n" for file in ("METADATA", "WHEEL", "RECORD")),
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(f"{info}/{file}", text)


def _resolved(constraints: Path) -> Iterator[tuple[str, str]]:
    """Yield the packages that a library names, with versions that fit together."""
    text = constraints.read_text()
    named = {normalized(name) for name in re.findall(r"^(\w[\w.-]*)", text, re.MULTILINE)}
    command = [Path(sys.executable).with_name("uv"), "pip", "compile", constraints]
    options = ("--python-version=3.12", "--python-platform=linux", "--quiet", "--no-header")
    done = subprocess.run(
        [*command, *options, "--no-annotate"], check=True, capture_output=True, text=True
    )
    for line in done.stdout.splitlines():
        requirement, _, version = line.partition(" ;")[0].partition("==")
        name = re.sub(r"\[.*", "", requirement)
        if normalized(name) in named:
            yield name, version


def _copy_triton(content: Path) -> None:
    """Copy the wheel's Triton to where NVIDIA's images have theirs, with what it is linked with."""
    import pytriton

    wheel = Path(str(pytriton.__file__)).parent
    triton = content / "opt" / "tritonserver"
    shutil.copytree(wheel / "tritonserver" / "bin", triton / "bin")
    shutil.copytree(wheel / "tritonserver" / "backends", triton / "backends")
    stub = "triton_python_backend_stub"
    shutil.copy(
        wheel / "tritonserver" / "python_backend_stubs" / "3.12" / stub,
        triton / "backends" / "python",
    )
    shutil.copytree(wheel / "tritonserver" / "caches" / "local", triton / "lib")
    libraries = content / "usr" / "lib" / "x86_64-linux-gnu"
    shutil.copytree(wheel.with_name("nvidia_pytriton.libs"), libraries)
    (libraries / "libdcgm.so.4").touch()  # in NVIDIA's image, the server is linked with it
    (triton / VERSION_FILE).write_text(f"{WHEEL_VERSION}.0\n")
    for program in (triton / "bin" / "tritonserver", triton / "backends" / "python" / stub):
        program.chmod(0o755)


def _empty_package(name: str, target: Path) -> None:
    """Make a Debian package without files."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        control = Path(folder, "DEBIAN", "control")
        control.parent.mkdir()
        fields = {
            "Package": name,
            "Version": "99",
            "Architecture": "all",
            "Maintainer": "tests",
            "Description": "stand-in for a package of Ubuntu",
        }
        control.write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
        command = [debian_program("dpkg-deb"), "--build", "--root-owner-group", folder, target]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
