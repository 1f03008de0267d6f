"""`nemotron batch` while client and server are killed: every row once, with the same text.

The rows are the questions of the tiny trained model over and over, greedy, with 4 to 8 tokens each,
sent over gRPC. The first run is undisturbed. In the second run the client and all of the server's
processes get a number of SIGKILLs each, in a random order and after random numbers of rows
(seeded). A killed client is started again with the same command; a server that ended, killed or
not, is started again on the same ports. This checks correctness and does not measure speed. Faults
are rows that are lost, duplicated or have another text.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.measurements.machine import NEMOTRON
from nemotron_build.engine_folder import build_engine
from nemotron_build.profile import Profile, load_profile
from nemotron_serve.ports import choose_ports
from tests.tiny_nemotron.answers import load_answers

POLL_SECONDS = 0.02
STALL_SECONDS = 20
"""Value of `timeouts.stall`: short, because the answers are."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint of the tiny model")
    parser.add_argument("--rows", type=int, default=20_000, help="default 20,000")
    parser.add_argument("--kills", type=int, default=10, help="of client and server, default 10")
    parser.add_argument("--seed", type=int, default=6, help="default 6")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    folder = options.work / "batch_chaos"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    generator = random.Random(options.seed)
    profile = with_fixed_ports(load_profile("cpu"))
    timeouts = profile.timeouts.model_copy(update={"stall": STALL_SECONDS})
    profile = profile.model_copy(update={"timeouts": timeouts})
    engine = folder / "engine"
    build_engine(options.checkpoint, engine, profile)
    profile_file = folder / "profile.yaml"
    profile_file.write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    source = folder / "in.jsonl"
    write_rows(source, options.rows, generator)
    calm, disturbed = folder / "calm.jsonl", folder / "disturbed.jsonl"
    url = f"grpc://{profile.address}:{profile.ports.grpc}"

    def command(output: Path) -> list[str]:
        options = ["--url", url, "--accept", "any"]  # the answers are cut off
        return [NEMOTRON, "batch", str(source), str(output), *options]

    victims = ["client", "server"] * options.kills
    generator.shuffle(victims)
    moments = sorted(generator.sample(range(options.rows // 100, options.rows), len(victims)))
    kills = list(zip(moments, victims, strict=True))
    with Supervisor(engine, profile_file, folder) as server:
        start = time.monotonic()
        subprocess.run(command(calm), check=True)
        calm_seconds, calm_ends = time.monotonic() - start, server.unexpected_ends
        chaos = Chaos(server, command(disturbed), disturbed, kills)
        start = time.monotonic()
        chaos.run()
        disturbed_seconds = time.monotonic() - start
    expected_texts, _ = read_texts(calm)
    texts, lines = read_texts(disturbed)
    lost = len(expected_texts.keys() - texts.keys())
    duplicated = lines - len(texts)
    different = sum(texts.get(row) != text for row, text in expected_texts.items())
    counts = {"missing in the undisturbed run": options.rows - len(expected_texts), "lost": lost,
              "duplicated": duplicated, "different": different}  # fmt: skip
    return {
        "killed": dict(chaos.killed),
        "kills": kills,
        "server_ended_by_itself": {
            "undisturbed": calm_ends,
            "disturbed": server.unexpected_ends - calm_ends,
        },
        "torn_lines": chaos.torn,
        "lines": lines,
        "ids": len(texts),
        "lost": lost,
        "twice": duplicated,
        "other_text": different,
        "seconds": {"undisturbed": calm_seconds, "disturbed": disturbed_seconds},
        "faults": [f"{count} rows {fault}" for fault, count in counts.items() if count],
    }


def write_rows(path: Path, rows: int, generator: random.Random) -> None:
    """Write rows of questions in turn, each with its own id."""
    questions = [
        [message.as_dict() for message in answer.question.messages] for answer in load_answers()
    ]
    with path.open("w") as file:
        for number in range(rows):
            body = {
                "messages": questions[number % len(questions)],
                "max_tokens": generator.randint(4, 8),
            }
            file.write(json.dumps({"custom_id": f"row-{number}", **body}) + "\n")


def read_texts(path: Path) -> tuple[dict[str, str], int]:
    """Return the text of each row by its id, and the number of lines."""
    lines = path.read_text().splitlines()
    texts = {}
    for line in lines:
        row = json.loads(line)
        assert row["error"] is None
        texts[row["custom_id"]] = row["response"]["body"]["choices"][0]["message"]["content"]
    return texts, len(lines)


def with_fixed_ports(profile: Profile) -> Profile:
    """Return the profile with ports that are free now, so that a restarted server has the same."""
    any_port = profile.ports.model_copy(update=dict.fromkeys(profile.ports.model_dump(), 0))
    endpoints = choose_ports(profile.model_copy(update={"ports": any_port}))
    chosen = {name: getattr(endpoints, name) for name in profile.ports.model_dump()}
    return profile.model_copy(update={"ports": profile.ports.model_copy(update=chosen)})


class Supervisor:
    """Context manager that keeps `nemotron serve` running on the same ports, as systemd would."""

    def __init__(self, engine: Path, profile: Path, folder: Path) -> None:
        ready = folder / "ports.json"
        self._command = [NEMOTRON, "serve", str(engine), "--profile", str(profile)]
        self._command += ["--port-file", str(ready), "--log-file", str(folder / "triton.log")]
        self._ready, self._log = ready, folder / "serve.log"
        self._stopping = threading.Event()
        self._killing = False
        self.unexpected_ends = 0

    def __enter__(self) -> Supervisor:
        self._ready.unlink(missing_ok=True)
        self._start()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self.wait()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._process.terminate()
        self._process.wait()

    def wait(self) -> None:
        """Wait until the server is ready."""
        while not self._ready.exists():
            time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """Send SIGKILL to every process of the server and wait until it is ready again."""
        self._killing = True
        server = psutil.Process(self._process.pid)
        victims = [server, *server.children(recursive=True)]
        self._ready.unlink(missing_ok=True)
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        self.wait()

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def _watch(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            if self._process.poll() is not None:
                self.unexpected_ends += not self._killing
                self._killing = False
                self._ready.unlink(missing_ok=True)
                self._start()


@dataclass
class Chaos:
    """One run with kills."""

    server: Supervisor
    command: list[str]
    output: Path
    kills: list[tuple[int, str]]
    """Number of rows after which the client or the server is killed, sorted."""
    killed: Counter[str] = field(default_factory=Counter)
    torn: int = 0
    """Number of kills of the client that left an incomplete line."""

    def run(self) -> None:
        self.client = self._start()
        try:
            for rows, victim in self.kills:
                self._wait_for(rows)
                self._kill(victim)
            status = self.client.wait()
            assert status == 0, f"the client ended with {status}"
        finally:
            self.client.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command, stderr=subprocess.DEVNULL)

    def _wait_for(self, rows: int) -> None:
        lines, offset = 0, 0
        while True:
            assert self.client.poll() is None, f"the client ended with {self.client.returncode}"
            if self.output.exists():
                with self.output.open("rb") as file:
                    file.seek(offset)
                    added = file.read()
                lines, offset = lines + added.count(b"\n"), offset + len(added)
            if lines >= rows:
                return
            time.sleep(POLL_SECONDS)

    def _kill(self, victim: str) -> None:
        self.killed[victim] += 1
        print(f"killing the {victim}", flush=True)
        if victim == "client":
            self.client.kill()
            self.client.wait()
            self.torn += not self.output.read_bytes().endswith(b"\n")
            self.client = self._start()
        else:
            self.server.kill()
