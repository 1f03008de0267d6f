"""The shipped Slurm files, unchanged, on a real Slurm of 2 nodes with 8 tasks each.

Stand-ins replace pyxis (`container.c`) and, in one test, TensorRT-LLM and its GPUs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from nemotron_client import Client, Generation
from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.manifest import changed_files, read_manifest
from tests.build.test_tensorrt_lane import BF16_TP8, H100, profile_file
from tests.slurm.cluster import Cluster, Job, slurm
from tests.standins.container import make_container
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tiny_nemotron.nemo_file import NEMO
from tests.waiting import until

SLURM = Path(__file__).parents[2] / "slurm"
SERVE = SLURM / "serve.sbatch"
PORTS = ("http", "grpc", "metrics", "health", "gateway")
FREE_PORTS = " ".join(f"--{name}-port 0" for name in PORTS)
DRAIN = "USR1"
FEW_TASKS = "--ntasks-per-node=1"
"""For tests that need few tasks: starting 16 tasks takes long on a small machine."""

pytestmark = pytest.mark.timeout(3600)  # whole journeys, on a machine that may be busy


@dataclass(frozen=True)
class Site:
    """A cluster and the storage that its nodes share."""

    cluster: Cluster
    shared: Path
    settings: dict[str, str]
    """Variables of serve.sbatch for all jobs."""

    def submit(self, work: Path, *options: str, **settings: str) -> Job:
        work.mkdir(exist_ok=True)
        variables = self.settings | {"WORK": str(work)} | settings
        return self.cluster.submit(SERVE, *options, **variables)

    def wait_until_ready(self, job: Job, work: Path) -> dict[str, Any]:
        """Wait for the port file, and return its content."""
        ports = work / f"ports-{job.number}.json"

        def is_ready() -> bool:
            assert ports.exists() or job.state in ("PENDING", "CONFIGURING", "RUNNING"), job.output
            return ports.exists()

        until(is_ready, explain=lambda: job.output, poll_seconds=0.1)
        return dict(json.loads(ports.read_text()))


def environment(**more: str) -> dict[str, str]:
    programs = str(Path(sys.executable).parent)
    return os.environ | {"PATH": os.pathsep.join([programs, os.environ["PATH"]])} | more


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("slurm")
    shared = folder / "shared"
    shared.mkdir()
    model = shutil.copy(NEMO, shared / "model.nemo")
    settings = {"MODEL": str(model), "PROFILE": "cpu", "CONVERT": "--tp 8", "SERVE": FREE_PORTS}
    with slurm(folder / "cluster", environment(), hide=shared) as cluster:
        yield Site(cluster, shared, settings)


@pytest.fixture
def single(answers: list[ExactAnswer]) -> ExactAnswer:
    return next(answer for answer in answers if len(answer.question.messages) == 1)


@pytest.fixture(scope="module")
def served(site: Site, checkpoint_tp8: Path, engine_bf16: Path) -> Path:
    """A WORK folder with a checkpoint and an engine."""
    work = site.shared / "served"
    shutil.copytree(checkpoint_tp8, work / "checkpoint-cpu")
    shutil.copytree(engine_bf16, work / "engine-cpu")
    return work


def test_the_journey_in_a_container(site: Site, checkpoint_tp8: Path, single: ExactAnswer) -> None:
    work, texts = site.shared / "journey", site.shared / "texts"
    texts.mkdir()
    (texts / "question").write_text(single.question.messages[0].content)
    job = site.submit(
        work,
        IMAGE="/images/nemotron.sqsh",
        MOUNTS=f"{texts}:{site.shared}/inside",
        COMMAND=f'echo "in $STANDIN_IMAGE"; nemotron chat "$(cat {site.shared}/inside/question)"'
        " > answer; ls ../texts",
    )
    assert job.wait_until_ended() == ("FAILED", 2), job.output  # of ls: it is not mounted there
    assert (work / "answer").read_text() == single.question.answer + "\n"
    assert "nemotron: convert build serve on n[1-2] with pmix" in job.output
    assert "works alone" not in job.output
    assert "in /images/nemotron.sqsh" in job.output
    assert "nemotron: the command ended with status 2" in job.output
    check_checkpoint(work / "checkpoint-cpu", checkpoint_tp8)
    assert not list(work.glob("ports-*"))


def check_checkpoint(checkpoint: Path, expected: Path) -> None:
    manifest = read_manifest(checkpoint)
    assert manifest.files == read_manifest(expected).files
    assert changed_files(checkpoint, manifest) == []


def test_three_jobs_without_pmix(
    tmp_path: Path, site: Site, checkpoint_tp8: Path, single: ExactAnswer
) -> None:
    """Open MPI 5 needs PMIx: without it, each of the 16 tasks of a conversion runs alone."""
    question = single.question.messages[0].content
    with slurm(tmp_path / "cluster", environment(), pmix=False) as cluster:
        settings = site.settings | {"WORK": str(tmp_path), "COMMAND": f"nemotron chat '{question}'"}
        printed = cluster.run(str(SLURM / "submit.sh"), "--time=60", **settings)
        names, numbers = zip(*(line.split() for line in printed.splitlines()), strict=True)
        assert names == ("convert", "build", "serve")
        convert, build, serve = jobs = [Job(cluster, number) for number in numbers]
        assert [job.wait_until_ended() for job in jobs] == [("COMPLETED", 0)] * 3, serve.output
        assert "nemotron: convert on n[1-2] with pmi2" in convert.output
        assert convert.output.count("MPI does not connect the 16 processes") == 1
        assert "nemotron: build on n" in build.output
        assert single.question.answer in serve.output
    check_checkpoint(tmp_path / "checkpoint-cpu", checkpoint_tp8)


def test_the_time_limit_drains(site: Site, served: Path) -> None:
    job = site.submit(served, FEW_TASKS, "--time=60", COMMAND="")
    ports = site.wait_until_ready(job, served)
    with Client(f"{ports['address']}:{ports['grpc']}") as client:
        pieces = client.stream_complete("<extra_id_1>Count", Generation(max_tokens=4000, end_id=0))
        next(pieces)
        site.cluster.run("scontrol", "update", f"jobid={job.number}", "timelimit=4")
        assert list(pieces)[-1].finish_reason == "length"
    assert job.wait_until_ended() == ("COMPLETED", 0), job.output
    assert "nemotron: serve on n[1-2]" in job.output  # the rest is there
    assert "draining" in job.output
    assert "stopped" in job.output


def test_a_node_goes_down_and_comes_back(site: Site, served: Path) -> None:
    job = site.submit(served, FEW_TASKS, COMMAND="")
    assert site.wait_until_ready(job, served)["host"] == "n1"
    site.cluster.power_off("n2")
    try:
        until(lambda: job.state == "PENDING", explain=lambda: job.output, poll_seconds=0.1)
    finally:
        site.cluster.start_node("n2")
    site.cluster.run("scontrol", "update", f"jobid={job.number}", "starttime=now")
    ports = site.wait_until_ready(job, served)
    with Client(f"{ports['address']}:{ports['grpc']}") as client:
        client.complete("<extra_id_1>Count", Generation(max_tokens=1))
    site.cluster.run("scancel", f"--signal={DRAIN}", job.number)
    assert job.wait_until_ended() == ("COMPLETED", 0), job.output
    assert job.output.count("is ready") == 2


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ((), "CANCELLED"),
        (("--signal=TERM", "--batch"), "COMPLETED"),
        (("--signal=INT",), "COMPLETED"),
    ],
    ids=["to all", "to the batch shell", "Ctrl-C under srun"],
)
def test_what_asks_to_stop_drains(
    options: tuple[str, ...], state: str, site: Site, served: Path
) -> None:
    """Slurm sends these signals to every process of a step, Triton and the engine among them."""
    job = site.submit(served, FEW_TASKS, "--nodes=1", COMMAND="")
    ports = site.wait_until_ready(job, served)
    with Client(f"{ports['address']}:{ports['grpc']}") as client:
        pieces = client.stream_complete("<extra_id_1>Count", Generation(max_tokens=1500, end_id=0))
        next(pieces)
        site.cluster.run("scancel", *options, job.number)
        last = list(pieces)[-1]
        assert (last.finish_reason, last.num_output_tokens) == ("length", 1500)
    assert job.wait_until_ended()[0] == state, job.output
    until(lambda: "stopped" in job.output, explain=lambda: job.output)
    until(lambda: processes(site, "tritonserver") == [])


def test_a_path_with_spaces_and_no_home(
    site: Site, served: Path, single: ExactAnswer, checkpoint_tp8: Path
) -> None:
    work = site.shared / "a folder"
    work.mkdir()
    model = shutil.copy(NEMO, work / "my model.nemo")
    (work / "my texts.jsonl").write_text('{"text": "Hello"}\n')
    job = site.submit(
        work,
        FEW_TASKS,
        "--nodes=1",
        MODEL=str(model),
        CONVERT=f"--tp 8 --dtype fp8 --calibrate '{work}/my texts.jsonl'",
        SERVE=f'{FREE_PORTS} --traces "http://127.0.0.1:9/a b"',
        COMMAND=f"nemotron chat '{single.question.messages[0].content}'",
        HOME="/nowhere",
    )
    assert job.wait_until_ended() == ("COMPLETED", 0), job.output
    assert single.question.answer in job.output


def test_tasks_of_an_array_have_ports_of_their_own(
    site: Site, served: Path, single: ExactAnswer
) -> None:
    """The two nodes are one machine here, so the profile's ports would be in use."""
    question = single.question.messages[0].content
    first = site.submit(
        served,
        FEW_TASKS,
        "--nodes=1",
        "--array=1-2",
        SERVE="",
        COMMAND=f"nemotron chat '{question}'; sleep 5",
    )
    jobs = [Job(site.cluster, f"{first.number}_{task}") for task in (1, 2)]
    for job in jobs:
        assert job.wait_until_ended() == ("COMPLETED", 0), job.output
        assert single.question.answer in job.output


def processes(site: Site, text: str) -> list[psutil.Process]:
    """Return the processes on all nodes with `text` on their command line."""

    def matches(process: psutil.Process) -> bool:
        try:
            return any(text in word for word in process.cmdline())
        except psutil.Error:  # it has ended
            return False

    nodes = [psutil.Process(node.pid) for node in site.cluster.nodes.values()]
    return [
        process for node in nodes for process in node.children(recursive=True) if matches(process)
    ]


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ((), {"MOUNTS": "/nowhere:/data", "IMAGE": "x.sqsh"}, "nemotron: no /nowhere on n"),
        ((), {"MODEL": "/nowhere.nemo"}, "nemotron: no /nowhere.nemo on n"),
        ((), {"WORK": "/nowhere"}, "nemotron: WORK is no folder: /nowhere"),
        ((), {"STEPS": "convert bake"}, "nemotron: STEPS has bake"),
        ((), {"MODEL": "/a:b.nemo", "IMAGE": "x.sqsh"}, "nemotron: a path with a comma or colon"),
        (("--export=NONE",), {}, "nemotron: no nemotron on PATH"),
        (("--array=1",), {}, "nemotron: the tasks of a job array would all write"),
        (
            (FEW_TASKS, "--nodes=1", ":", FEW_TASKS, "--nodes=1"),
            {},
            "nemotron: a heterogeneous job",
        ),
    ],
    ids=" ".join,
)
def test_what_is_missing_is_named_at_once(
    options: tuple[str, ...], settings: dict[str, str], message: str, site: Site, tmp_path: Path
) -> None:
    job = site.submit(tmp_path / "work", *options, **settings)
    assert job.wait_until_ended() == ("FAILED", 1), job.output
    assert message in job.output
    assert list((tmp_path / "work").iterdir()) == []


def tensorrt_lane(site: Site, tmp_path: Path, *, nodes: int) -> tuple[Path, dict[str, str]]:
    """Return the WORK of a converted model and the settings to build and serve it.

    It has TP=8 and one pipeline stage for each node. The GPUs and TensorRT-LLM are stand-ins.
    """
    tensorrt = make_container(tmp_path / "container", gpu=H100, version="1.2.1")
    profile = profile_file(
        tmp_path,
        split={"tp": 8, "pp": nodes, "nodes": nodes, "gpus_per_node": 8},
        triton=str(tensorrt.triton),
        ports=dict.fromkeys(PORTS, 0),
        **BF16_TP8,
    )
    paths = os.pathsep.join([str(tensorrt.root / "bin"), site.cluster.environment["PATH"]])
    work = tmp_path / "work"
    convert(NEMO, work / "checkpoint-own", Options(Parallel(8, nodes)))
    own = {"PATH": paths, "PROFILE": profile, "STEPS": "build serve"}
    return work, tensorrt.environment | own


def test_sixteen_ranks_of_the_tensorrt_lane(
    site: Site, tmp_path: Path, single: ExactAnswer
) -> None:
    """TP=8 × PP=2 over both nodes, with stand-ins for the GPUs and TensorRT-LLM.

    A rank dies while the command waits after its answer.
    """
    work, settings = tensorrt_lane(site, tmp_path, nodes=2)
    question = single.question.messages[0].content
    command = f"nemotron chat '{question}' > answer && exec sleep 987654321"
    job = site.submit(work, COMMAND=command, **settings)
    site.wait_until_ready(job, work)
    until(lambda: is_asleep(site), explain=lambda: job.output, poll_seconds=0.1)
    assert (work / "answer").read_text() == single.question.answer + "\n"
    workers = processes(site, "mgmn_worker_node")
    assert len(workers) == 15
    workers[-1].kill()
    state, code = job.wait_until_ended()
    assert state == "FAILED", job.output
    assert code > 0
    assert "Killed" in job.output
    for program in ("tritonserver", "nemotron_engine", "987654321"):
        assert processes(site, program) == []


def is_asleep(site: Site) -> bool:
    """Return whether the command `sleep` runs, which the shell that waits for it names, too."""
    return any(process.name() == "sleep" for process in processes(site, "987654321"))


def lone_engine(site: Site) -> psutil.Process | None:
    """Return the engine's process that an mpirun has started, or `None`."""
    for process in processes(site, "nemotron_engine"):
        parent = process.parent()
        if parent is not None and parent.name() in ("mpirun", "prterun"):
            return process
    return None


def test_an_engine_of_one_node_does_not_see_slurm(
    site: Site, tmp_path: Path, single: ExactAnswer
) -> None:
    """The library starts ranks by MPI, whose singletons fail in a step: mpirun starts the first."""
    work, settings = tensorrt_lane(site, tmp_path, nodes=1)
    settings |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    job = site.submit(work, FEW_TASKS, "--nodes=1", COMMAND="", **settings)
    ports = site.wait_until_ready(job, work)
    engine = lone_engine(site)
    assert engine is not None
    assert not [name for name in engine.environ() if name.startswith("SLURM_")]
    with Client(f"{ports['address']}:{ports['grpc']}") as client:
        client.complete("<extra_id_1>Count", Generation(max_tokens=1))
    engine.kill()  # and it is started again, by another mpirun
    until(lambda: lone_engine(site) not in (None, engine))
    site.cluster.run("scancel", f"--signal={DRAIN}", job.number)
    assert job.wait_until_ended() == ("COMPLETED", 0), job.output
    assert processes(site, "nemotron_engine") == []
