"""One server of many processes: a rank on each GPU, under `mpirun`, `srun` or the like."""

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
from nemotron_build.profile import Profile, TensorRTProfile
from nemotron_core.errors import NemotronError
from nemotron_serve.hosts import MPIRUN, command_over
from nemotron_serve.repository import render_repository
from nemotron_serve.triton import JOB_VARIABLE, STOP, Triton, find_triton, log_tail, shared_memory

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
    """With the launcher's exit code, which is that of the first rank that failed."""

    def __init__(self, launcher: str, status: int) -> None:
        super().__init__(
            f"a rank failed: {launcher} ended with status {status}",
            remedy="the lines above say which and why",
        )
        self.exit_code = max(status, 1)


def world_size(profile: Profile) -> int:
    """Processes of Triton that serve one engine together."""
    return profile.split.world_size if isinstance(profile, TensorRTProfile) else 1


def check_world(profile: Profile, size: int) -> None:
    """NemotronError if the launcher has started another number of ranks than the engine has."""
    if size != (wanted := world_size(profile)):
        raise NemotronError(
            f"the launcher has started {size} processes, the engine has {wanted} ranks",
            remedy=f"start {wanted}, one on each GPU",
        )


def launch_command(
    profile: Profile, arguments: Sequence[str], hosts: Sequence[str] = ()
) -> list[str]:
    """What starts all ranks: here, on `hosts`, or on all machines of a Slurm allocation."""
    nemotron = [sys.executable, "-m", "nemotron_cli", "serve", *arguments]
    if isinstance(profile, TensorRTProfile) and hosts:
        return command_over(hosts, profile, nemotron)
    if isinstance(profile, TensorRTProfile) and profile.split.nodes > 1:
        split = profile.split
        nodes = [f"--nodes={split.nodes}", f"--ntasks-per-node={split.gpus_per_node}"]
        return [SRUN, *nodes, "--mpi=pmix", "--kill-on-bad-exit=1", *nemotron]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [MPIRUN, *root, "-n", str(world_size(profile)), *nemotron]


def launch(command: Sequence[str], stop: threading.Event) -> None:
    """Run all ranks until they end; once `stop` is set they are asked to.

    LauncherFailed if one of them failed, or the command that the first has run.
    """
    if shutil.which(command[0]) is None:
        raise NemotronError(
            f"no {command[0]} on PATH",
            remedy="install it, or start this command once on each GPU with a launcher that you"
            " have",
        )
    with shared_memory() as prefix, tempfile.TemporaryDirectory(prefix="nemotron-") as scratch:
        # Killed ranks clean up nothing; on other machines their own folders will have to do.
        here = {"TMPDIR": scratch} if command[0] == MPIRUN else {}
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **here, JOB_VARIABLE: prefix},
            start_new_session=True,
        )
        try:
            _wait(process, stop)
        except BaseException:
            process.terminate()  # it ends its ranks, which a kill would leave
            process.wait()
            raise
    if process.returncode:
        raise LauncherFailed(command[0], process.returncode)


def _wait(process: subprocess.Popen[bytes], stop: threading.Event) -> None:
    while process.poll() is None:
        if stop.wait(POLL_SECONDS):
            process.send_signal(STOP)
            process.wait()


def worker_command(triton: Triton, models: Path, prefix: str) -> list[str]:
    """Of every rank but the first, which alone talks to clients."""
    return [*triton.command(models, prefix), *WORKER_OPTIONS]


def serve_rank(rank: int, engine: Path, record: EngineRecord, profile: Profile) -> None:
    """A rank that computes; it ends with the first one. NemotronError if it ends otherwise."""
    folder = Path(tempfile.mkdtemp(prefix="nemotron-"))
    try:
        with shared_memory() as prefix:
            triton = find_triton(profile, folder)
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
