"""The fraction of the CPU engine's own tokens that each hop of the serving path carries.

In turn, the same engine process is asked on its own socket, through the text models over gRPC, and
through the gateway. The client is a program in C, so that it takes no CPU from the engine.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.measurements.load_client import LoadClient, engine_socket, result_of
from bench.measurements.servers import engine_of, serving
from bench.measurements.serving import ROUTES
from bench.measurements.timing import in_turn, summary
from nemotron_serve.probe import Probe

ALONE = "engine alone"
HOPS = (ALONE, *ROUTES)
WARM_SECONDS = 3.0
PROBE_SECONDS = 30


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine folder")
    parser.add_argument("--streams", default="1,8,32", help="default 1,8,32")
    parser.add_argument("--tokens", type=int, default=256, help="per answer, default 256")
    parser.add_argument("--seconds", type=float, default=10, help="of each load, default 10")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    client = LoadClient(options.work)
    quantities = ("tokens_per_second", "responses_per_second")
    values: dict[str, dict[str, dict[str, list[float]]]] = {
        quantity: {hop: {} for hop in HOPS} for quantity in quantities
    }
    faults: list[str] = []
    token_bytes = 0.0
    with ExitStack() as stack:
        server = stack.enter_context(serving(options.engine))
        engine = engine_of(server)
        probe = stack.enter_context(Probe(engine.socket, PROBE_SECONDS))
        for count in options.streams.split(","):
            for run, hop in in_turn(options.runs, HOPS):
                route = (
                    engine_socket(engine.socket, options.tokens)
                    if hop == ALONE
                    else ROUTES[hop](server, options.tokens)
                )
                process = client.start(
                    route,
                    int(count),
                    warm=WARM_SECONDS,
                    seconds=options.seconds,
                    ramp=1,
                    options=("--bytes", str(token_bytes)),
                )
                load = result_of(process, WARM_SECONDS + options.seconds)
                if hop != ALONE:  # the answers, and so their tokens' text, are the same
                    token_bytes = load.bytes_per_token
                for quantity in quantities:
                    by_count = values[quantity][hop]
                    by_count.setdefault(count, []).append(getattr(load, quantity))
                if load.errors or load.truncated:
                    faults.append(f"{hop} at {count} streams: {load}")
                print(f"{run + 1}: {count} {hop}: {load.tokens_per_second:,.0f}", flush=True)
                while probe.load().running:
                    time.sleep(0.1)
    results: dict[str, Any] = {
        quantity: {
            hop: {count: summary(runs) for count, runs in by_count.items()}
            for hop, by_count in by_hop.items()
        }
        for quantity, by_hop in values.items()
    }
    rates = values["tokens_per_second"]
    results["fraction_of_the_engine"] = {
        hop: {
            count: summary([a / b for a, b in zip(runs, rates[ALONE][count], strict=True)])
            for count, runs in rates[hop].items()
        }
        for hop in ROUTES
    }
    return results | {"faults": faults}
