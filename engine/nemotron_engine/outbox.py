"""The chunks that one client of the engine has not been sent yet."""

from __future__ import annotations

from nemotron_engine.protocol import Chunk


class Outbox:
    """Holds at most one chunk for each request: what comes before it is sent is added to it.

    So a client that reads slowly gets fewer chunks with more tokens each, and never holds up the
    engine.
    """

    def __init__(self) -> None:
        self._chunks: dict[bytes, Chunk] = {}

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def put(self, chunk: Chunk) -> None:
        """Add a request's next tokens, or its end."""
        unsent = self._chunks.get(chunk.key)
        if unsent is None:
            self._chunks[chunk.key] = chunk
        else:
            unsent.extend(chunk)

    def take(self) -> list[Chunk]:
        """Return all chunks, and forget them."""
        chunks, self._chunks = self._chunks, {}
        return list(chunks.values())
