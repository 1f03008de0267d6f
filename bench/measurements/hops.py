"""What each hop of the serving path leaves of the CPU engine's tokens, and of its CPU time.

In turn, the same engine process is asked on its own socket, through the text models over gRPC, and
through the gateway. The client is a program in C, so that it takes no CPU from the engine. Tokens
per second change with the machine's neighbours; the share of the CPU time of all server processes
that the engine's process gets changes much less, and bounds what the hops can take.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.measurements.load_client import LoadClient, engine_socket, result_of
from bench.measurements.processes import family
from bench.measurements.servers import Server, engine_of, serving
from bench.measurements.serving import ROUTES, measure_route
from bench.measurements.timing import in_turn, summary

ALONE = "engine alone"
HOPS = (ALONE, *ROUTES)
ANSWER_SECONDS = 30
"""Upper limit of the time that one answer takes without other streams."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine folder")
    parser.add_argument("--streams", default="1,8,32", help="default 1,8,32")
    parser.add_argument("--tokens", type=int, default=256, help="per answer, default 256")
    parser.add_argument("--seconds", type=float, default=10, help="of each load, default 10")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    client = LoadClient(options.work)
    rates: dict[str, dict[str, list[float]]] = {hop: {} for hop in HOPS}
    shares: dict[str, dict[str, list[float]]] = {hop: {} for hop in HOPS}
    faults: list[str] = []
    with ExitStack() as stack:
        server = stack.enter_context(serving(options.engine))
        engine = engine_of(server)
        pids = family([server.pid], without=[engine.pid])
        token_bytes = bytes_per_token(client, server, options.tokens)
        for count in options.streams.split(","):
            for run, hop in in_turn(options.runs, HOPS):
                route = (
                    engine_socket(engine.socket, options.tokens)
                    if hop == ALONE
                    else ROUTES[hop](server, options.tokens)
                )
                sample = measure_route(
                    client, route, int(count), options.seconds, pids, engine, token_bytes
                )
                rates[hop].setdefault(count, []).append(sample["tokens_per_second"])
                share = sample["engine_cores"] / (sample["engine_cores"] + sample["cores"])
                shares[hop].setdefault(count, []).append(share)
                if sample["errors"] or sample["truncated"]:
                    faults.append(f"{hop} at {count} streams: {sample}")
                rate = sample["tokens_per_second"]
                print(f"{run + 1}: {count} {hop}: {rate:,.0f}, {share:.3f}", flush=True)
    fractions = {
        hop: {
            count: [a / b for a, b in zip(values, rates[ALONE][count], strict=True)]
            for count, values in rates[hop].items()
        }
        for hop in ROUTES
    }
    quantities = {
        "tokens_per_second": rates,
        "fraction_of_the_engine": fractions,
        "engine_share_of_cpu": shares,
    }
    results: dict[str, Any] = {
        quantity: {
            hop: {count: summary(values) for count, values in by_count.items()}
            for hop, by_count in by_hop.items()
        }
        for quantity, by_hop in quantities.items()
    }
    return results | {"faults": faults}


def bytes_per_token(client: LoadClient, server: Server, tokens: int) -> float:
    """Return the size of a token in the gateway's text, from whole answers of one stream."""
    route = ROUTES["gateway"](server, tokens)
    process = client.start(route, 1, seconds=ANSWER_SECONDS / 3)
    return result_of(process, ANSWER_SECONDS / 3).bytes_per_token
