"""The Dockerfiles, without a container engine.

All are linted. The commands of the CPU lane's Dockerfile are run in a folder.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helm.chart import CHART, render
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tools import python_tool
from tests.waiting import WAIT, until_written

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "build" / "docker").glob("*.Dockerfile"))
CPU = ROOT / "build" / "docker" / "cpu.Dockerfile"
MOUNTS = ("/src", "/opt", "/tmp", "/locks", "/wheels")


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str
    stage: int


def instructions(path: Path) -> list[Instruction]:
    """Return the instructions of a Dockerfile, with continuation lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    instructions_so_far: list[Instruction] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, text = line.partition(" ")
            stage = (instructions_so_far[-1].stage if instructions_so_far else -1) + (
                name == "FROM"
            )
            instructions_so_far.append(Instruction(name, text.strip(), stage))
    return instructions_so_far


def last(path: Path, name: str) -> str:
    return [instruction.text for instruction in instructions(path) if instruction.name == name][-1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_lint(path: Path) -> None:
    command = [str(python_tool("hadolint", "hadolint")), "--failure-threshold", "info", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_every_image_has(path: Path) -> None:
    all_instructions = instructions(path)
    assert re.fullmatch(r"\d{5}:\d{5}", last(path, "USER"))
    assert json.loads(last(path, "ENTRYPOINT")) == ["nemotron"]
    assert "/health/ready" in last(path, "HEALTHCHECK")
    for label in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{label}=" in last(path, "LABEL")
    bases = [
        instruction.text.split()[0]
        for instruction in all_instructions
        if instruction.name == "FROM"
    ]
    assert len(bases) > 1
    assert all(re.search(r":\d[\w.-]+$", base) for base in bases)
    assert f'base.name="{bases[-1]}"' in last(path, "LABEL").replace("docker.io/library/", "")
    names = {
        instruction.text.partition("=")[0]
        for instruction in all_instructions
        if instruction.name == "ARG"
    }
    assert names == {"VERSION", "REVISION"}  # so no secret can be given, and none stays


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_copied_is_there_and_let_through(path: Path) -> None:
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    for instruction in instructions(path):
        if instruction.name == "COPY" and not instruction.text.startswith("--from"):
            *sources, _target = instruction.text.split()
            for source in sources:
                assert (ROOT / source).exists()
                assert f"!{source}" in let_through


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_change_of_code_leaves_the_large_layers(path: Path) -> None:
    """In the image itself, what depends on the code or on its version comes last, and is small."""
    texts = [
        f"{instruction.name} {instruction.text}"
        for instruction in instructions(path)
        if instruction.stage == instructions(path)[-1].stage
    ]
    (code,) = (number for number, text in enumerate(texts) if "from=build,source=/wheels" in text)
    assert "--no-deps /wheels/*.whl" in texts[code]
    later = {text.partition(" ")[0] for text in texts[code + 1 :]}
    assert not later & {"COPY", "ADD", "RUN"}
    assert {"ARG", "LABEL"} <= later
    copied = {text for text in texts if text.startswith("COPY") and "--from=" not in text}
    assert copied <= {
        "COPY pyproject.toml /src/",
        "COPY tests/tiny_nemotron/tiny_nemotron.nemo /opt/nemotron/tiny_nemotron.nemo",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_image_lists_its_packages(path: Path) -> None:
    """The last layer of each image, which is made when its code changes, writes the list."""
    (code,) = (i.text for i in instructions(path) if "--no-deps /wheels/*.whl" in i.text)
    tool = (ROOT / "tests" / "tools" / "cyclonedx.txt").read_text().strip()
    assert tool in code
    environments = code.count("--no-deps /wheels/*.whl")
    assert (
        len(re.findall(r"--output-file /opt/nemotron/sbom[a-z-]*\.cdx\.json", code)) == environments
    )


def test_the_packages_of_the_cpu_image_are_locked() -> None:
    (install,) = (i.text for i in instructions(CPU) if "--require-hashes" in i.text)
    assert "--requirement /locks/demo.txt" in install


def test_the_chart_runs_as_the_user_that_the_images_have() -> None:
    for path in FILES:
        user, group = map(int, last(path, "USER").split(":"))
        assert f"useradd --uid {user} " in path.read_text()
        for document in render(CHART / "examples" / "cpu.yaml"):
            if document["kind"] in ("StatefulSet", "Deployment"):
                context = document["spec"]["template"]["spec"]["securityContext"]
                assert (context["runAsUser"], context["runAsGroup"]) == (user, group)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU lane's image, built in a folder that stands for `/`.

    Unlike `docker build`, this uses other paths, this machine's Python, no users, and the
    dependencies of the tests instead of a download.
    """
    root = tmp_path_factory.mktemp("image")
    for folder in MOUNTS:
        (root / folder[1:]).mkdir()
    packages = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    python = Path(sys.executable).parent
    lists_packages = python_tool("cyclonedx", "cyclonedx-py").parents[1]
    (own,) = lists_packages.glob("lib/python3*/site-packages")
    environment = {
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{packages}{os.pathsep}{own}",
    }
    place = root
    for instruction in instructions(CPU):
        if instruction.name == "WORKDIR":
            place = root / instruction.text[1:]
        elif instruction.name == "COPY" and not instruction.text.startswith("--from"):
            # All stages are one folder here.
            *sources, target = shlex.split(instruction.text)
            for source in sources:
                copy(ROOT / source, inside(root, target) if target[0] == "/" else place / target)
        elif instruction.name == "RUN" and not instruction.text.startswith("useradd"):
            command = re.sub(r"--mount=\S+", "", instruction.text)
            command = re.sub(r"(?<![\w.])/(opt|locks|wheels)", rf"{root}/\1", command)
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=place,
                env={**os.environ, **environment},
                check=False,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    (site,) = (root / "opt" / "venv" / "lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text(packages + "\n")
    return root


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target / source.name if target.is_dir() else target)


def inside(root: Path, path: str) -> Path:
    return root / path[1:]


def run(image: Path, *command: str) -> str:
    environment = {"PATH": f"{image / 'opt' / 'venv' / 'bin'}:/usr/bin:/bin", "HOME": str(image)}
    done = subprocess.run(
        command,
        cwd=image / "tmp",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_image_holds_the_project_itself(image: Path) -> None:
    code = "import nemotron_build as n; print(n.__file__)"
    assert run(image, "python", "-c", code).startswith(str(image))
    entrypoint = json.loads(last(CPU, "ENTRYPOINT"))
    assert "serve" in run(image, *entrypoint, *json.loads(last(CPU, "CMD")))
    listed = json.loads(inside(image, "/opt/nemotron/sbom.cdx.json").read_text())
    versions = {entry["name"]: entry["version"] for entry in listed["components"]}
    assert run(image, *entrypoint, "--version") == f"nemotron {versions['nemotron-triton']}\n"
    assert f"VERSION={versions['nemotron-triton']}" in {i.text for i in instructions(CPU)}


def test_the_image_serves(image: Path, answers: list[ExactAnswer]) -> None:
    nemotron = json.loads(last(CPU, "ENTRYPOINT"))
    model = str(inside(image, "/opt/nemotron/tiny_nemotron.nemo"))
    tmp = image / "tmp"
    run(image, *nemotron, "convert", model, "-o", "checkpoint", "--tp", "1")
    run(image, *nemotron, "build", "checkpoint", "-o", "engine", "--profile", "cpu")
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "health", "gateway")]
    environment = {"PATH": f"{image / 'opt' / 'venv' / 'bin'}:/usr/bin:/bin", "HOME": str(image)}
    program = str(inside(image, "/opt/venv/bin") / nemotron[0])
    server = subprocess.Popen(
        [program, "serve", "engine", *ports, "--port-file", "ports.json"],
        cwd=tmp,
        env=environment,
    )
    try:
        until_written(tmp / "ports.json", server)
        chosen_ports = json.loads((tmp / "ports.json").read_text())
        check = json.loads(last(CPU, "HEALTHCHECK").partition("CMD ")[2])
        run(image, *(part.replace(":8003/", f":{chosen_ports['health']}/") for part in check))
        question = answers[0].question
        printed = run(
            image,
            *(*nemotron, "chat", "--url", f"127.0.0.1:{chosen_ports['grpc']}"),
            question.messages[-1].content,
        )
        assert printed == question.answer + "\n"
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT) == 0
    finally:
        server.kill()
        server.wait()
