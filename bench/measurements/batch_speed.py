"""Processor time, speed and memory of `nemotron batch`, beside plain loops and an earlier commit.

A stand-in server answers every row after 20 ms. In each run all clients send the same rows in turn,
at each number of requests at once. Their time is that of the whole process, less that of a run over
one row. Then:

- `servers`: three servers with room for 32 requests each, and the same with one of them killed
  after a tenth of the rows; each row must be in the output once;
- `lanes`: 1,000 rows of four tokens on a real server with the tiny model, over gRPC and over HTTP;
- `slow`: 1,500 rows with answers of 10 s ± 30 %, 256 at once, all clients at the same time;
- `resume`: 999 of 1,000 rows of a long input are done already;
- `ordered`: all rows are done, in the reverse order, and are sorted. The copies are the most bytes
  beside input and output, as multiples of the output.

The earlier commit runs from a git worktree with this environment's libraries.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measurements.machine import NEMOTRON, ROOT
from bench.measurements.openai_server import BODY
from bench.measurements.servers import build_cpu_engine, serving
from nemotron_data.batch.result_line import result_line
from nemotron_data.rows.parser import RowParser
from nemotron_data.rows.row import Row
from nemotron_data.transport.protocol import Answer

PARTS = ("speed", "servers", "lanes", "slow", "resume", "ordered")
DISTILABEL_CONCURRENCY = 64
LANE_ROWS, LANE_TOKENS = 1000, 4
SECONDS = 0.02
"""Time of an answer."""
SLOW_ROWS, SLOW_SECONDS, SLOW_SPREAD, SLOW_CONCURRENCY = 1500, 10.0, 0.3, 256
SERVER_ROWS, SERVER_SECONDS, SERVER_ROOM = 6000, 0.2, 32
POLL_SECONDS = 0.05
LEFT = 1000
"""Rows of the long input that are not done yet."""


@dataclass(frozen=True)
class Client:
    """A program that sends rows, by the command that it needs."""

    command: Sequence[str]
    tree: Path | None = None
    """Folder with the code of an earlier commit."""

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if self.tree is not None:
            rooms = sorted({str(path.parent) for path in self.tree.glob("*/nemotron_*/")})
            environment["PYTHONPATH"] = os.pathsep.join(rooms)
        command = [*self.command, *map(str, arguments)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)

    def run(self, *arguments: object) -> dict[str, float]:
        """Return the seconds, the processor time in seconds and the peak RSS in bytes of a run."""
        start = time.monotonic()
        process = self.start(*arguments)
        watch = Copies(process.pid)
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{self.command} ended with {process.returncode}")
        return {
            "seconds": time.monotonic() - start,
            "cpu": usage.ru_utime + usage.ru_stime,
            "rss": usage.ru_maxrss * 1024,
            "other_files": watch.largest,
        }


class Copies:
    """The most bytes in files that a process has open for writing at once, also unnamed ones."""

    def __init__(self, pid: int) -> None:
        self.largest = 0
        self._folder = Path(f"/proc/{pid}/fd")
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self._folder.exists():
            sizes = {}
            with suppress(OSError):
                for entry in self._folder.iterdir():
                    with suppress(OSError):
                        status = entry.stat()
                        if stat.S_ISREG(status.st_mode):
                            sizes[status.st_ino] = status.st_size
            self.largest = max(self.largest, sum(sizes.values()))
            time.sleep(POLL_SECONDS)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--commit", help="the earlier commit; without it, it is left out")
    parser.add_argument("--checkpoint", type=Path, help="of the tiny model, for the part lanes")
    parser.add_argument(
        "--distilabel", type=Path, help="Python with distilabel; measured once, 64 at once"
    )
    parser.add_argument("--rows", type=int, default=4000, help="default 4,000")
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=[8, 64, 256, 1024], help="requests at once"
    )
    parser.add_argument("--long-rows", type=int, default=1_000_000, help="default 1,000,000")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=[part for part in PARTS if part != "lanes"],
        help="the parts; default all but lanes, which needs --checkpoint",
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    if "lanes" in options.only and options.checkpoint is None:
        raise SystemExit("the part lanes needs --checkpoint")
    python = sys.executable
    clients = {"nemotron batch": Client([NEMOTRON, "batch"])}
    results: dict[str, Any] = {}
    with worktree(options.commit, options.work / "tree") as tree:
        if tree is not None:
            clients["earlier commit"] = Client([python, "-m", "nemotron_cli", "batch"], tree)
        if "speed" in options.only:
            results["speed"] = speed(options, clients)
        if "servers" in options.only:
            results["servers"] = [servers(options) for _ in range(options.runs)]
        if "lanes" in options.only:
            results["lanes"] = lanes(options, clients)
        if "slow" in options.only:
            results["slow"] = slow(options.work, clients)
        if "resume" in options.only:
            results["resume"] = [
                resume(options, clients, is_ordered=False) for _ in range(options.runs)
            ]
        if "ordered" in options.only:
            results["ordered"] = [
                resume(options, clients, is_ordered=True) for _ in range(options.runs)
            ]
    return results


def speed(options: argparse.Namespace, clients: dict[str, Client]) -> list[dict[str, Any]]:
    """Return processor seconds for 1,000 rows, and rows per second, of each client."""
    source, single = options.work / "in.jsonl", options.work / "single.jsonl"
    write_rows(source, options.rows + 1)
    write_rows(single, 1)
    results: list[dict[str, Any]] = []
    with server(SECONDS, 0) as (url, _process):
        for run in range(options.runs):
            for concurrency in options.concurrency:
                row: dict[str, Any] = {"run": run, "concurrency": concurrency}
                everyone = clients | peers()
                if options.distilabel and concurrency == DISTILABEL_CONCURRENCY and run == 0:
                    script = ROOT / "bench" / "measurements" / "batch_distilabel.py"
                    everyone["distilabel"] = Client([str(options.distilabel), str(script)])
                for name, client in everyone.items():
                    usages = []
                    for rows in (single, source):
                        output = options.work / f"{name.replace(' ', '-')}.jsonl"
                        remove(output)
                        usages.append(client.run(*arguments(name, rows, output, url, concurrency)))
                    idle, busy = usages
                    row[name] = {
                        "cpu": (busy["cpu"] - idle["cpu"]) / options.rows * 1000,
                        "rows_per_second": options.rows / (busy["seconds"] - idle["seconds"]),
                    }
                print(json.dumps(row), flush=True)
                results.append(row)
    return results


def servers(options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of a run with three servers, without and with one that is killed."""
    source, output = options.work / "in.jsonl", options.work / "servers.jsonl"
    write_rows(source, SERVER_ROWS)
    seconds: dict[str, float] = {}
    for name in ("three servers", "one killed"):
        remove(output)
        with ExitStack() as stack:
            running = [stack.enter_context(server(SERVER_SECONDS, 0)) for _ in range(3)]
            urls = [argument for url, _process in running for argument in ("--url", url)]
            limit = ["--concurrency", str(SERVER_ROOM)]
            if name == "one killed":
                victim = running[1][1]
                killer = threading.Thread(target=kill_after, args=(victim, output))
                killer.start()
            client = Client([NEMOTRON, "batch"])
            seconds[name] = client.run(source, output, *urls, *limit)["seconds"]
        lines = output.read_text().splitlines()
        ids = {json.loads(line)["custom_id"] for line in lines}
        if not len(lines) == len(ids) == SERVER_ROWS:
            raise SystemExit(f"{len(lines)} lines with {len(ids)} ids for {SERVER_ROWS} rows")
    print(json.dumps(seconds), flush=True)
    return seconds


def kill_after(process: subprocess.Popen[str], output: Path) -> None:
    while not output.exists() or output.read_bytes().count(b"\n") < SERVER_ROWS // 10:
        time.sleep(POLL_SECONDS)
    process.kill()


def lanes(options: argparse.Namespace, clients: dict[str, Client]) -> list[dict[str, Any]]:
    """Return the seconds and the processor time of each client on a real server."""
    source, engine = options.work / "short.jsonl", options.work / "engine"
    write_rows(source, LANE_ROWS, max_tokens=LANE_TOKENS)
    if not engine.exists():
        build_cpu_engine(options.checkpoint, engine)
    results = []
    with serving(engine) as running:
        urls = {
            "gRPC": f"grpc://{running.address}:{running.grpc}",
            "HTTP": f"http://{running.address}:{running.gateway}",
        }
        for run in range(options.runs):
            for lane, url in urls.items():
                for name, client in clients.items():
                    output = options.work / "lanes.jsonl"
                    remove(output)
                    flags = ["--accept", "any"] if client.tree is None else []
                    usage = client.run(source, output, "--url", url, *flags)
                    row = {"run": run, "lane": lane, "client": name, "seconds": usage["seconds"]}
                    results.append(row | {"cpu": usage["cpu"]})
                    print(json.dumps(results[-1]), flush=True)
    return results


def slow(work: Path, clients: dict[str, Client]) -> dict[str, float]:
    """Return the seconds that each client needs for rows with long answers, all at once."""
    source = work / "slow.jsonl"
    write_rows(source, SLOW_ROWS)
    seconds: dict[str, float] = {}
    with server(SLOW_SECONDS, SLOW_SPREAD) as (url, _process):

        def run(name: str, client: Client) -> None:
            output = work / f"slow-{name.replace(' ', '-')}.jsonl"
            remove(output)
            usage = client.run(*arguments(name, source, output, url, SLOW_CONCURRENCY))
            seconds[name] = usage["seconds"]

        everyone = [*clients.items(), ("aiohttp", peers()["aiohttp"])]
        threads = [threading.Thread(target=run, args=entry) for entry in everyone]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(json.dumps(seconds), flush=True)
    return seconds


def resume(
    options: argparse.Namespace, clients: dict[str, Client], *, is_ordered: bool
) -> dict[str, Any]:
    """Return the processor time and memory of a run over a long input that is almost done."""
    rows, work = options.long_rows, options.work
    source = work / "long.jsonl"
    if not source.exists():
        write_rows(source, rows)
    results = {}
    with server(SECONDS, 0) as (url, _process):
        for name, client in clients.items():
            output = work / "long-out.jsonl"
            remove(output)
            done = range(rows)[::-1] if is_ordered else range(rows - LEFT)
            write_results(source, output, done, url, client)
            size = output.stat().st_size
            flags = ["--ordered"] if is_ordered else []
            usage = client.run(source, output, "--url", url, *flags)
            lines = output.read_bytes().count(b"\n")
            if lines != rows:
                raise SystemExit(f"{name}: {lines} lines for {rows} rows")
            others = usage.pop("other_files") - source.stat().st_size - size
            results[name] = usage | {"copies": max(0, others) / size}
    print(json.dumps(results), flush=True)
    return results


def peers() -> dict[str, Client]:
    command = [sys.executable, "-m", "bench.measurements.batch_peers"]
    return {name: Client([*command, name]) for name in ("aiohttp", "openai")}


def arguments(name: str, source: Path, output: Path, url: str, concurrency: int) -> list[object]:
    if name in peers() or name == "distilabel":
        return [url, source, output, concurrency]
    return [source, output, "--url", url, "--concurrency", concurrency]


def write_rows(path: Path, rows: int, **settings: int) -> None:
    with path.open("w") as file:
        for number in range(rows):
            message = {"role": "user", "content": f"Why is the sky blue, number {number}?"}
            row = {"custom_id": f"row-{number}", "messages": [message], **settings}
            file.write(json.dumps(row) + "\n")


def write_results(source: Path, output: Path, done: range, url: str, client: Client) -> None:
    """Write the results of some rows, and the manifest that the client makes for the input."""
    lines = source.read_bytes().splitlines(keepends=True)
    first = source.with_name("first.jsonl")
    first.write_bytes(lines[0])
    client.run(first, output, "--url", url)
    manifest_path = output.with_name(output.name + ".manifest.json")
    manifest = json.loads(manifest_path.read_text())
    if client.tree is not None:
        digest = hashlib.sha256(b"".join(lines)).hexdigest()
        manifest |= {"source": str(source), "source_sha256": digest, "rows": len(lines)}
        manifest |= {"finished": None, "failed": None}
        manifest_path.write_text(json.dumps(manifest))
    parser, answer = RowParser(), Answer(200, "x", json.dumps(BODY).encode())
    with output.open("wb") as file:
        for index in done:
            row = parser.parse(index + 1, lines[index])
            assert isinstance(row, Row)
            file.write(result_line(row, answer))


def remove(output: Path) -> None:
    for path in output.parent.glob(f"{output.name}*"):
        path.unlink()


@contextmanager
def server(seconds: float, spread: float) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the URL and the process of a stand-in server."""
    command = [sys.executable, "-m", "bench.measurements.openai_server", str(seconds), str(spread)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def worktree(commit: str | None, tree: Path) -> Iterator[Path | None]:
    if commit is None:
        yield None
        return
    add = ["git", "worktree", "add", "--force", "--detach", str(tree), commit]
    subprocess.run(add, cwd=ROOT, check=True, stdout=sys.stderr)
    try:
        yield tree
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
