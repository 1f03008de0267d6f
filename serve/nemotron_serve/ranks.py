"""The ranks of one server: a Triton process on each GPU, under `mpirun`, `srun` or the like."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from nemotron_build.engine_folder import EngineRecord
from nemotron_build.lanes import lane_of
from nemotron_build.lanes.deployment import Deployment
from nemotron_build.profile import Profile
from nemotron_core.errors import NemotronError
from nemotron_serve.hosts import MPIRUN, mpirun_command
from nemotron_serve.repository import render_repository
from nemotron_serve.triton import (
    DRAIN,
    JOB_VARIABLE,
    Triton,
    find_triton,
    log_tail,
    shared_memory,
)

WORKER_OPTIONS = (
    "--model-control-mode=explicit",
    "--load-model=tensorrt_llm",
    "--allow-http=false",
    "--allow-grpc=false",
    "--allow-metrics=false",
)
POLL_SECONDS = 0.2
SRUN = "srun"


class LauncherFailed(NemotronError):
    """The launcher failed. The exit code is the launcher's, which is the first failed rank's."""

    def __init__(self, launcher: str, status: int) -> None:
        super().__init__(
            f"a rank failed: {launcher} ended with status {status}",
            remedy="the lines above name the rank and the reason",
        )
        self.exit_code = max(status, 1)


def check_world(deployment: Deployment, size: int) -> None:
    """Raise `NemotronError` unless the launcher started as many processes as there are ranks."""
    if size != (ranks := deployment.ranks):
        raise NemotronError(
            f"the launcher has started {size} processes, the engine has {ranks} ranks",
            remedy=f"start {ranks}, one on each GPU",
        )


def launch_command(
    deployment: Deployment, arguments: Sequence[str], hosts: Sequence[str] = ()
) -> list[str]:
    """Return the command that starts all ranks.

    The ranks run on `hosts`. Without hosts, they run on this machine or, for several nodes, on the
    machines of a Slurm allocation. `arguments` are those of `nemotron serve`.
    """
    nemotron = [sys.executable, "-m", "nemotron_cli", "serve", *arguments]
    if hosts:
        return mpirun_command(hosts, deployment, nemotron)
    if deployment.nodes > 1:
        nodes = [f"--nodes={deployment.nodes}", f"--ntasks-per-node={deployment.gpus_per_node}"]
        return [SRUN, *nodes, "--mpi=pmix", "--kill-on-bad-exit=1", *nemotron]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [MPIRUN, *root, "-n", str(deployment.ranks), *nemotron]


def launch(command: Sequence[str], stop: threading.Event) -> None:
    """Run all ranks until they end. When `stop` is set, ask them to drain.

    Raises `LauncherFailed` if a rank failed, or the user's command that the first rank runs.
    """
    if shutil.which(command[0]) is None:
        raise NemotronError(
            f"no {command[0]} on PATH",
            remedy="install it, or start this command once on each GPU with a launcher that you"
            " have",
        )
    with shared_memory() as prefix, tempfile.TemporaryDirectory(prefix="nemotron-") as scratch:
        # A killed rank removes nothing, so the temporary files of ranks on this machine go into a
        # folder that is removed here. Ranks on other machines use the folders that they have.
        temporary = {"TMPDIR": scratch} if command[0] == MPIRUN else {}
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **temporary, JOB_VARIABLE: prefix},
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if stop.wait(POLL_SECONDS):
                    process.send_signal(DRAIN)
                    process.wait()
        except BaseException:
            process.terminate()  # then the launcher ends its ranks; if killed, it would not
            process.wait()
            raise
    if process.returncode:
        raise LauncherFailed(command[0], process.returncode)


def worker_command(triton: Triton, models: Path, prefix: str) -> list[str]:
    """Return the command of every rank but the first. Only the first one serves clients."""
    return [*triton.command(models, prefix), *WORKER_OPTIONS]


def serve_rank(rank: int, engine: Path, record: EngineRecord, profile: Profile) -> None:
    """Run a rank that only computes, until the first rank ends.

    Raises `NemotronError` if Triton fails.
    """
    folder = Path(tempfile.mkdtemp(prefix="nemotron-"))
    try:
        with shared_memory() as prefix:
            triton = find_triton(lane_of(profile).deployment(profile).triton, folder)
            models, log = folder / "models", folder / "triton.log"
            render_repository(engine, record, profile, models, drain_file=folder / "draining")
            process = triton.start(worker_command(triton, models, prefix), log)
            try:
                process.wait()
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if process.returncode:
                raise NemotronError(
                    f"rank {rank}: Triton ended with status {process.returncode}: {log_tail(log)}"
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
