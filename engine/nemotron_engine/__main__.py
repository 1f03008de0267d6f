"""The engine's process.

    python -m nemotron_engine --lane LANE --socket PATH ENGINE

It needs nothing of Triton, so it runs in any Python environment that has the lane's library and
this package. It listens once the engine is loaded, and ends after SIGTERM when no request runs.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import sys
from pathlib import Path

from nemotron_core.errors import NemotronError
from nemotron_core.launcher import own_rank
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_engine.adapters import ADAPTERS, load_adapter, work
from nemotron_engine.server import EngineServer
from nemotron_engine.worker_watch import workers_watched

ORPHAN_SECONDS = 10.0
"""Time without a client after which an engine that was started for one server ends: a launcher that
was killed with the server leaves it behind."""


def main() -> int:
    """Load an engine and serve it. Return the exit code."""
    parser = argparse.ArgumentParser(prog="nemotron_engine", description=__doc__)
    parser.add_argument("engine", type=Path, help="engine folder, written by `nemotron build`")
    parser.add_argument("--lane", required=True, help=f"one of {', '.join(ADAPTERS)}")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument(
        "--group", type=int, help="id of a group whose members may connect, besides this user"
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="LoRA adapter to load, once for each",
    )
    parser.add_argument(
        "--once", action="store_true", help="end when the last client has been gone for 10 seconds"
    )
    options = parser.parse_args()
    faulthandler.enable()
    try:
        if (place := own_rank()) is not None and place[0] > 0:
            work(options.lane, options.engine, place)
            return 0
        tokenizer = hashlib.sha256((options.engine / TOKENIZER_NAME).read_bytes()).hexdigest()
        adapter = load_adapter(options.lane, options.engine)
        server = EngineServer(
            adapter, options.lane, options.socket, tokenizer=tokenizer, group=options.group
        )
        for lora in options.lora:
            name, _, folder = lora.partition("=")
            server.load_lora(name, Path(folder))
        with workers_watched(adapter.workers()):
            server.run(orphan_seconds=ORPHAN_SECONDS if options.once else None)
        adapter.close()
    except (NemotronError, OSError) as error:
        print(f"nemotron_engine: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
