"""`nemotron try`: from a model's files to a page to chat on, in one command.

Checkpoint and engine are made by the verbs `convert` and `build`, in a cache that is named by the
source and by what was asked for, so a second call serves at once. `nemotron clean` removes it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_build.engine_folder import ENGINE_NAME
from nemotron_build.hardware import Hardware
from nemotron_build.lanes import lane_of
from nemotron_build.plan import ServingPlan, make_plan
from nemotron_build.profile import Profile, load_profile, with_weights
from nemotron_build.weights import Weights
from nemotron_core.errors import NemotronError
from nemotron_core.files import text_digest
from nemotron_core.folder import existing_folder
from nemotron_core.memory import free_memory
from nemotron_core.model_config import ModelConfig
from nemotron_core.safe_path import SAFE_PATH
from nemotron_serve.options import ServeOptions, TryOptions
from nemotron_serve.ports import listening_process, next_free_port
from nemotron_serve.serve import serve
from nemotron_serve.trial_cache import CACHE_VARIABLE, cache_folder, held

HUB_VARIABLE = "HF_HUB_CACHE"
DIGEST_CHARACTERS = 12
SERVER_BYTES = 1 << 30
"""Memory of Triton, the gateway and the libraries beside the engine's weights and cache, about."""
POLL_SECONDS = 0.5
PORT_FILE = "server.json"
"""File in a trial's folder while it is served."""
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # a key, and no address to bind
"""Where a browser finds what listens on every address of this machine."""
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
"""Environment variables of which one is there if a browser can open a window."""


@dataclass(frozen=True)
class Trial:
    """What a model takes here. Sizes are in bytes."""

    source: Path
    folder: Path
    """Folder of the cache for this model and these options."""
    profile: Profile
    report: Mapping[str, Any]
    """What `nemotron inspect --json` says of the source."""
    plan: ServingPlan

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def engine(self) -> Path:
        return self.folder / "engine"

    @property
    def disk(self) -> int:
        """Bytes of disk that are still needed."""
        missing = 0
        if not (self.engine / ENGINE_NAME).exists():
            missing += self.plan.weights
            if not self.checkpoint.exists():
                missing += self.plan.checkpoint
        return missing

    @property
    def memory(self) -> int:
        """Bytes of memory that the server takes; on a GPU, the least for the engine."""
        stage = max(self.plan.stages, key=lambda stage: stage.weights)
        if not self.computes_here:
            return stage.weights + self.plan.activations
        cache = self.plan.kv_tokens * stage.kv_token
        return stage.weights + cache + self.plan.activations + SERVER_BYTES

    @property
    def computes_here(self) -> bool:
        """Whether the engine computes on this machine's CPU."""
        return lane_of(self.profile).deployment(self.profile).gpu is None

    def lines(self) -> list[str]:
        """Return the costs for a person."""
        free = shutil.disk_usage(existing_folder(self.folder)).free
        profile = self.profile
        weights = getattr(profile, "weights", profile.dtype)
        return [
            f"model   {self.source}: {self.report['kind']}, "
            f"{_count(self.report['parameters'])} parameters",
            f"engine  lane {profile.lane}, weights in {weights.upper()}, "
            f"{self.plan.context:,} tokens",
            f"disk    {_size(self.disk)} more in {self.folder}, {_size(free)} free",
            f"memory  about {_size(self.memory)}, {_size(free_memory())} available"
            if self.computes_here
            else f"memory  at least {_size(self.memory)} on the GPU",
        ]

    def check(self) -> None:
        """Raise `NemotronError` if disk or memory are too small."""
        free = shutil.disk_usage(existing_folder(self.folder)).free
        if self.disk > free:
            raise NemotronError(
                f"{_size(self.disk)} of disk are needed, {_size(free)} are free",
                where=self.folder,
                remedy=f"make room, run `nemotron clean`, or set {CACHE_VARIABLE} to another disk",
            )
        if self.computes_here and self.memory > free_memory():
            raise NemotronError(
                f"about {_size(self.memory)} of memory are needed, "
                f"{_size(free_memory())} are available",
                remedy="use --weights int4, end other programs, or try a smaller model",
            )


def try_model(options: TryOptions) -> None:
    """Convert, build and serve a model, and open the chat page.

    Raises `NemotronError` if the source cannot be converted, the machine is too small, the port is
    in use, or another process makes or serves the same.
    """
    trial = make_trial(find_source(options.model), options.profile, options.weights)
    print("\n".join(trial.lines()), flush=True)
    trial.check()
    if options.dry_run:
        return
    if options.port:
        check_port(trial.profile.address, options.port)
    with held(trial.folder) as lock:
        port_file = trial.folder / PORT_FILE
        port_file.unlink(missing_ok=True)  # of a server that was killed
        if not (trial.engine / ENGINE_NAME).exists():
            _make(trial, lock)
        print(f"cached in {trial.folder}; `nemotron clean` removes it", flush=True)
        if options.browser and any(map(os.environ.get, DISPLAYS)):
            threading.Thread(target=_open_page, args=(port_file,), daemon=True).start()
        serve(
            ServeOptions(
                engine=trial.engine,
                http_port=0,
                grpc_port=0,
                metrics_port=0,
                health_port=0,
                gateway_port=options.port,
                free_ports=options.port is None,
                port_file=port_file,
            )
        )


def check_port(address: str, port: int) -> None:
    """Raise `NemotronError` if the page's port cannot be used, before anything is converted."""
    free = next_free_port(address, port - 1, set())
    if free == port:
        return
    process = listening_process(port)
    raise NemotronError(
        f"the port {port} cannot be used" + (f": {process} listens there" if process else ""),
        where=f"{address}:{port}",
        remedy=f"stop what listens there, or use --port {free or 0}",
    )


def make_trial(source: Path, profile_name: str, weights: Weights | None) -> Trial:
    """Look at a source and return what it takes. Raises `NemotronError` if it is not converted."""
    profile = with_weights(load_profile(profile_name), weights)
    if profile.ports.gateway is None:
        raise NemotronError(
            "`try` needs a gateway",
            where=profile_name,
            remedy="give `gateway` a port under `ports`",
        )
    report = json.loads(_nemotron("inspect", str(source), "--json", capture=True))
    if "convertible" not in report:
        raise NemotronError(
            "this is a folder that `nemotron convert` wrote",
            where=source,
            remedy="name what it was converted from, or build an engine of it",
        )
    if not report["convertible"]:
        # The conversion's plan says why.
        _nemotron("convert", str(source), "-o", str(cache_folder() / "x"), "--plan", capture=True)
        raise NemotronError("the model cannot be converted", where=source)
    shape = ModelConfig(**report["config"])
    memory = Hardware("this machine", _total_memory(), 1.0, {})
    plan = make_plan(profile, memory, shape=shape, vocab_size=report["vocab_size"])
    key = text_digest(f"{_digest(source)} {profile.model_dump_json()}")[:DIGEST_CHARACTERS]
    folder = cache_folder() / f"{source.name.removesuffix('.nemo')[:60]}-{key}"
    return Trial(source, folder, profile, report, plan)


def find_source(model: str) -> Path:
    """Return the path of a model: a file, a folder, or a repository in Hugging Face's cache.

    Raises `NemotronError` if there is none; nothing is downloaded.
    """
    path = Path(model)
    if path.exists():
        return path.resolve()
    owner, _, name = model.partition("/")
    default = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    repository = Path(os.environ.get(HUB_VARIABLE, default)) / f"models--{owner}--{name}"
    reference = repository / "refs" / "main"
    if reference.is_file():
        snapshot = repository / "snapshots" / reference.read_text(encoding="ascii").strip()
        if snapshot.is_dir():
            return snapshot
    raise NemotronError(
        "no such file or folder, and no such model in Hugging Face's cache",
        where=model,
        remedy=f"download it with `hf download {model}`" if name else "name a .nemo or a folder",
    )


def _make(trial: Trial, lock: int) -> None:
    """Convert and build; an interrupted conversion goes on where it was.

    The verbs have the lock too: if only this process is killed, they go on writing.
    """
    options = lane_of(trial.profile).conversion(trial.profile)
    convert = ("-o", str(trial.checkpoint), "--reuse", *options)
    _nemotron("convert", str(trial.source), *convert, descriptors=[lock])
    profile = trial.folder / "profile.yaml"
    profile.write_text(trial.profile.model_dump_json(exclude_none=True), encoding="utf-8")
    build = ("-o", str(trial.engine), "--profile", str(profile), "--reuse")
    _nemotron("build", str(trial.checkpoint), *build, descriptors=[lock])
    shutil.rmtree(trial.checkpoint)  # the engine holds everything


def _nemotron(*arguments: str, capture: bool = False, descriptors: Sequence[int] = ()) -> str:
    """Run another verb. Raises `NemotronError` with its own message if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "nemotron_cli", *arguments],
        env=os.environ | SAFE_PATH,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.PIPE if capture else None,
        check=False,
        encoding="utf-8",
        pass_fds=descriptors,
    )
    if done.returncode:
        message = (done.stderr or "").strip().removeprefix("nemotron: ")
        raise NemotronError(message or f"`nemotron {arguments[0]}` failed: see above")
    return done.stdout or ""


def _digest(source: Path) -> str:
    """Return the SHA-256 (hex) of names, sizes and times of the source's files."""
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    lines = []
    for path in files:
        if path.is_file():
            status = path.stat()
            lines.append(f"{path.relative_to(source)} {status.st_size} {status.st_mtime_ns}")
    return text_digest("\n".join([str(source), *lines]))


def _open_page(port_file: Path) -> None:
    """Open the chat page in the user's browser once the gateway listens."""
    while True:
        try:
            url = page_url(json.loads(port_file.read_text(encoding="utf-8")))
            with urllib.request.urlopen(f"{url}/health", timeout=POLL_SECONDS):  # noqa: S310
                break
        except (OSError, ValueError, KeyError, urllib.error.URLError):
            time.sleep(POLL_SECONDS)
    webbrowser.open(url)


def page_url(server: Mapping[str, Any]) -> str:
    """Return the URL of the page for a browser on this machine, from what a server says of itself.

    >>> page_url({"address": "0.0.0.0", "gateway": 8080})
    'http://127.0.0.1:8080'
    """
    address = ANY_ADDRESS.get(server["address"], server["address"])
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{server['gateway']}"


def _total_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e8 else f"{number / 1e6:.1f} million"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
