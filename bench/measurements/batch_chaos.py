"""`nemotron batch` while server and client are killed: every row once, with the same text.

    python -m bench.measurements.batch_chaos CHECKPOINT WORK_FOLDER [--rows 20000]
        [--kills 10] [--json OUT]

CHECKPOINT is of the tiny trained model. The rows are its questions over and over, greedy, with 4 to
8 tokens each, asked over gRPC. First undisturbed; then with SIGKILL to the client so many times and
to all of the server's processes as many times, in a random order and after random numbers of rows
(seeded). A killed client is started again with the same command; a server that ended, by a kill or
by itself, on the same ports. A check of correctness: nothing here is a measure of speed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from bench.measurements.convert_speed import NEMOTRON, machine
from nemotron_build.engine_folder import build_engine
from nemotron_build.profile import Profile, load_profile
from nemotron_serve.server import choose_ports
from tests.tiny_nemotron.answers import load_answers

POLL_SECONDS = 0.02
STALL_SECONDS = 20
"""When `serve` takes an engine for dead; short, for answers are too."""


def write_rows(path: Path, rows: int, generator: random.Random) -> None:
    """Questions in turn, each row with an id of its own."""
    questions = [[m.as_dict() for m in one.question.messages] for one in load_answers()]
    with path.open("w") as file:
        for number in range(rows):
            body = {
                "messages": questions[number % len(questions)],
                "max_tokens": generator.randint(4, 8),
            }
            file.write(json.dumps({"custom_id": f"row-{number}", **body}) + "\n")


def texts(path: Path) -> tuple[dict[str, str], int]:
    """The text of each row, and how many lines there are."""
    lines = path.read_text().splitlines()
    found = {}
    for line in lines:
        row = json.loads(line)
        assert row["error"] is None
        found[row["custom_id"]] = row["response"]["body"]["choices"][0]["message"]["content"]
    return found, len(lines)


def fixed_ports(profile: Profile) -> Profile:
    """Ports that are free now, so that a server can come back where it was."""
    free = profile.ports.model_copy(update=dict.fromkeys(profile.ports.model_dump(), 0))
    ends = choose_ports(profile.model_copy(update={"ports": free}))
    chosen = {name: getattr(ends, name) for name in profile.ports.model_dump()}
    return profile.model_copy(update={"ports": profile.ports.model_copy(update=chosen)})


class Supervisor:
    """Keeps `nemotron serve` running on the same ports, as systemd would; a context manager."""

    def __init__(self, engine: Path, profile: Path, folder: Path) -> None:
        ready = folder / "ports.json"
        self._command = [NEMOTRON, "serve", str(engine), "--profile", str(profile)]
        self._command += ["--port-file", str(ready), "--log-file", str(folder / "triton.log")]
        self._ready, self._log = ready, folder / "serve.log"
        self._stopping = threading.Event()
        self._killing = False
        self.ended_by_itself = 0

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
        """Until it is ready."""
        while not self._ready.exists():
            time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """SIGKILL to every process of the server; it is started again, which this waits for."""
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
                self.ended_by_itself += not self._killing
                self._killing = False
                self._ready.unlink(missing_ok=True)
                self._start()


@dataclass
class Chaos:
    """One disturbed run."""

    server: Supervisor
    command: list[str]
    output: Path
    kills: list[tuple[int, str]]
    """After so many rows, which of the two; sorted."""
    killed: Counter[str] = field(default_factory=Counter)
    torn: int = 0
    """Kills of the client that left half a line."""

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
        done, place = 0, 0
        while True:
            assert self.client.poll() is None, f"the client ended with {self.client.returncode}"
            if self.output.exists():
                with self.output.open("rb") as file:
                    file.seek(place)
                    new = file.read()
                done, place = done + new.count(b"\n"), place + len(new)
            if done >= rows:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    generator = random.Random(options.seed)
    profile = fixed_ports(load_profile("cpu"))
    timeouts = profile.timeouts.model_copy(update={"stall": STALL_SECONDS})
    profile = profile.model_copy(update={"timeouts": timeouts})
    engine = options.folder / "engine"
    build_engine(options.checkpoint, engine, profile)
    settings = options.folder / "profile.yaml"
    settings.write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    source = options.folder / "in.jsonl"
    write_rows(source, options.rows, generator)
    calm, disturbed = options.folder / "calm.jsonl", options.folder / "disturbed.jsonl"
    url = f"grpc://{profile.address}:{profile.ports.grpc}"

    def command(output: Path) -> list[str]:
        return [NEMOTRON, "batch", str(source), str(output), "--url", url]

    victims = ["client", "server"] * options.kills
    generator.shuffle(victims)
    moments = sorted(generator.sample(range(options.rows // 100, options.rows), len(victims)))
    kills = list(zip(moments, victims, strict=True))
    with Supervisor(engine, settings, options.folder) as server:
        began = time.monotonic()
        subprocess.run(command(calm), check=True)
        undisturbed, crashes = time.monotonic() - began, server.ended_by_itself
        chaos = Chaos(server, command(disturbed), disturbed, kills)
        began = time.monotonic()
        chaos.run()
    expected, _ = texts(calm)
    found, lines = texts(disturbed)
    result = {
        "machine": machine(),
        "rows": options.rows,
        "seed": options.seed,
        "killed": dict(chaos.killed),
        "kills": kills,
        "server_ended_by_itself": {
            "undisturbed": crashes,
            "disturbed": server.ended_by_itself - crashes,
        },
        "torn_lines": chaos.torn,
        "lines": lines,
        "ids": len(found),
        "lost": len(expected.keys() - found.keys()),
        "twice": lines - len(found),
        "other_text": sum(found.get(name) != text for name, text in expected.items()),
        "seconds": {"undisturbed": undisturbed, "disturbed": time.monotonic() - began},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    assert len(expected) == options.rows
    assert not result["lost"] and not result["twice"] and not result["other_text"]


if __name__ == "__main__":
    main()
