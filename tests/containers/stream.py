"""An answer that is being sent while its server is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.containers.store import Store

TOKENS = 3000
CLIENT = f"""
from nemotron_client import Client, Generation
with Client("127.0.0.1:8001") as client:
    generation = Generation(max_tokens={TOKENS}, end_id=0)
    pieces = client.stream_complete("<extra_id_1>Count", generation)
    print(next(pieces).num_output_tokens, flush=True)
    last = list(pieces)[-1]
    print(last.finish_reason, last.num_output_tokens)
"""


@contextmanager
def answering(store: Store, container: str) -> Iterator[None]:
    """An answer begins in a container before the block, and must be whole after it."""
    with store.start("podman", "exec", container, "python", "-c", CLIENT) as stream:
        assert stream.stdout
        assert int(stream.stdout.readline()) < TOKENS
        yield
        assert stream.communicate()[0] == f"length {TOKENS}\n"
