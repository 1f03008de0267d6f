"""A real Slurm of several nodes on this machine.

A node is a `slurmd` in namespaces of its own (processes, mounts, host name), so that ending the
namespace's first process is a power cut. Everything lies in one folder and listens on loopback.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm import container
from tests.tools import debian_program
from tests.waiting import WAIT, until

NODES = ("n1", "n2")
TASKS_PER_NODE = 8
GPUS_PER_NODE = 8
NULL_DEVICE = os.makedev(1, 3)
PLUGINS = Path("/usr/lib/x86_64-linux-gnu/slurm-wlm")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Job:
    """A batch job."""

    cluster: Cluster
    number: str

    def show(self) -> dict[str, str]:
        """Return Slurm's record of the job, or of the first component of a heterogeneous one."""
        text = self.cluster.run("scontrol", "--oneliner", "show", "job", self.number)
        return dict(re.findall(r"(\S+?)=(\S*)", text.partition("\n")[0]))

    @property
    def state(self) -> str:
        return self.show()["JobState"]

    @property
    def output(self) -> str:
        path = Path(self.show()["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_until_ended(self) -> tuple[str, int]:
        """Wait, and return the job's state and exit code."""
        until(lambda: self.state in ENDED, explain=lambda: self.output, poll_seconds=0.1)
        shown = self.show()
        return shown["JobState"], int(shown["ExitCode"].partition(":")[0])

    def wait_for_output(self, text: str) -> None:
        def is_there() -> bool:
            is_printed = text in self.output
            assert is_printed or self.state not in ENDED, self.output
            return is_printed

        until(is_there, explain=lambda: f"{self.show()}\n{self.output}", poll_seconds=0.1)


@dataclass
class Cluster:
    folder: Path
    environment: dict[str, str]
    daemons: ExitStack = field(default_factory=ExitStack)
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, *command: str, **environment: str) -> str:
        """Return the output of a Slurm program. Raises `AssertionError` if the program fails."""
        done = subprocess.run(
            command,
            env=self.environment | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: Path, *options: str, **environment: str) -> Job:
        printed = self.run("sbatch", "--parsable", *options, str(script), **environment)
        return Job(self, printed.strip())

    def start_node(self, name: str) -> None:
        """Start a node and wait until jobs can run on it."""
        for node_folder in (self.folder / f"spool-{name}", self.folder / f"tmp-{name}"):
            shutil.rmtree(node_folder, ignore_errors=True)  # a node without a disk
            node_folder.mkdir()
        inside = f"hostname {name} && mount -t tmpfs tmpfs /dev/shm && exec slurmd -D -N {name}"
        namespaces = ["--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.nodes[name] = self._start(
            ["unshare", *namespaces, "bash", "-c", inside],
            # Debian's PMIx has neither shared memory for this nor munge.
            PMIX_MCA_gds="hash",
            PMIX_MCA_psec="none",
        )
        until(lambda: self.node_state(name) == "idle", explain=self.logs, poll_seconds=0.1)

    def node_state(self, name: str) -> str:
        """Return the state that sinfo prints: idle, alloc, down…"""
        return self.run("sinfo", "--noheader", "--nodes", name, "--format=%t").strip()

    def power_off(self, name: str) -> None:
        """Kill all processes of a node, and set its state in Slurm."""
        _kill(self.nodes.pop(name))
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=power")

    def logs(self) -> str:
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(path.read_text()[-3000:] for path in files)

    def _start(self, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{Path(command[0]).name}.out").open("ab") as output:
            process = subprocess.Popen(
                command,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # calls nothing but the kernel
            )
        self.daemons.callback(_kill, process)
        return process

    def start(self) -> None:
        socket_path, key = self.folder / "munge.socket", self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        files = {"key-file": key, "socket": socket_path}
        files |= {name: self.folder / f"munge.{name}" for name in ("pid-file", "seed-file")}
        options = [f"--{name}={path}" for name, path in files.items()]
        log = self.folder / "munge.log"
        # Forced: others have no way into the folder of a test, and none is needed.
        munged = [debian_program("munged"), "--foreground", "--force", f"--log-file={log}"]
        self._start([*munged, *options])
        until(socket_path.exists, explain=self.logs)
        self._start([debian_program("slurmctld"), "-D"])
        until(self._is_up, explain=self.logs, poll_seconds=0.1)
        for name in NODES:
            self.start_node(name)

    def _is_up(self) -> bool:
        done = subprocess.run(
            ["scontrol", "ping"], env=self.environment, capture_output=True, text=True, check=False
        )
        return " is UP" in done.stdout


def _die_with_parent() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a node: `unshare --kill-child` kills all processes of its namespace."""
    process.kill()
    process.wait()


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def _configuration(folder: Path, plugins: Path) -> str:
    control, *ports = _free_ports(1 + len(NODES))
    cores = f"Sockets=1 CoresPerSocket={TASKS_PER_NODE} ThreadsPerCore=1"
    shape = f"{cores} RealMemory=8000 Gres=gpu:{GPUS_PER_NODE}"
    nodes = [
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} {shape}"
        for name, port in zip(NODES, ports, strict=True)
    ]
    lines = [
        "ClusterName=test",
        "SlurmctldHost=localhost(127.0.0.1)",
        f"SlurmctldPort={control}",
        "SlurmUser=root",
        "SlurmdUser=root",
        f"AuthInfo=socket={folder}/munge.socket",
        f"PluginDir={plugins}",
        f"PlugStackConfig={folder}/plugstack.conf",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"TmpFS={folder}/tmp-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "SlurmdParameters=config_overrides",
        "ReturnToService=2",
        "KillWait=45",
        # Daemons that answer late on a busy machine are not dead.
        "MessageTimeout=100",
        "TCPTimeout=60",
        "SlurmdTimeout=900",
        "BatchStartTimeout=900",
        "SchedulerParameters=bf_interval=1",  # heterogeneous jobs start by backfill only
        "MailProg=/bin/true",
        "GresTypes=gpu",
        *nodes,
        "PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
    ]
    return "\n".join([*lines, ""])


@contextmanager
def slurm(
    folder: Path, environment: dict[str, str], *, pmix: bool = True, hide: Path | None = None
) -> Iterator[Cluster]:
    """Start two nodes, whose jobs have `environment`, and stop all processes at the end.

    Containers do not see the folder `hide`.
    """
    for program in ("slurmd", "srun", "unshare", "gcc"):
        debian_program(program)
    plugins = folder / "plugins"
    plugins.mkdir(parents=True)
    for plugin in PLUGINS.iterdir():
        if pmix or "pmix" not in plugin.name:
            (plugins / plugin.name).symlink_to(plugin)
    (folder / "slurm.conf").write_text(_configuration(folder, plugins))
    for number in range(GPUS_PER_NODE):  # stand-ins: what Slurm wants of a GPU is a device
        os.mknod(folder / f"gpu{number}", 0o600 | stat.S_IFCHR, NULL_DEVICE)
    gpus = f"File={folder}/gpu[0-{GPUS_PER_NODE - 1}]"
    (folder / "gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu {gpus}\n")
    hidden = f" hide={hide}" if hide else ""
    (folder / "plugstack.conf").write_text(f"required {container.compiled(folder)}{hidden}\n")
    path = os.pathsep.join([environment["PATH"], "/usr/sbin", "/sbin"])
    conf = str(folder / "slurm.conf")
    clean = {name: text for name, text in environment.items() if not name.startswith("SLURM_")}
    cluster = Cluster(folder, clean | {"PATH": path, "SLURM_CONF": conf})
    with cluster.daemons:
        cluster.start()
        yield cluster
