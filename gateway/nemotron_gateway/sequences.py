"""The sequences of one request: all answers to all prompts, some of them at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from nemotron_core.errors import ErrorKind
from nemotron_core.generation import MAX_SEED, Generation, Piece, Prompt
from nemotron_core.openai.errors import HttpError

PATIENCE_SECONDS = 0.05
"""First pause before the next attempt where the engine's queue is full; the next ones double."""
MOST_PATIENCE_SECONDS = 1.0
Generate = Callable[[Prompt, Generation], AsyncGenerator[Piece, None]]


@dataclass(frozen=True)
class Group:
    """Answers to one prompt that the engine gets together."""

    prompt: Prompt
    generation: Generation
    first: int
    """Index of its first answer among those to all prompts."""
    offset: int
    """The same among those to its prompt."""
    count: int


def groups_of(prompts: Sequence[Prompt], generation: Generation, slots: int) -> Iterator[Group]:
    """Yield the answers to all prompts in groups of at most `slots`.

    Answer *i* to a prompt has the seed plus *i*, as if the engine had got all of them together.
    """
    answers = generation.num_return_sequences or 1
    for number, prompt in enumerate(prompts):
        for offset in range(0, answers, slots):
            count = min(slots, answers - offset)
            seed = generation.seed
            part = replace(
                generation,
                num_return_sequences=count if count > 1 else None,
                seed=None if seed is None else (seed + offset) % (MAX_SEED + 1),
            )
            yield Group(prompt, part, number * answers + offset, offset, count)


async def generate_groups(
    groups: Sequence[Group], slots: int, generate: Generate
) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield the pieces of all groups, each with the index of its answer.

    At most `slots` sequences are at the engine at once, the others wait for their turn. Once the
    engine has taken one of the groups, a full queue makes the others wait too. A failure of one
    ends all of them.
    """
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue(slots)
    seats = _Seats(slots)
    is_taken = asyncio.Event()

    async def read(group: Group) -> None:
        pause = PATIENCE_SECONDS
        try:
            async with seats.take(group.count):
                while not await attempt(group):
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, MOST_PATIENCE_SECONDS)
            await queue.put(None)
        except Exception as error:  # raised again by the reader of the queue
            await queue.put(error)

    async def attempt(group: Group) -> bool:
        """Generate a group. Return whether the engine has taken it."""
        try:
            async with aclosing(generate(group.prompt, group.generation)) as pieces:
                async for piece in pieces:
                    is_taken.set()
                    index = group.first + piece.sequence_index
                    in_all = replace(piece, sequence_index=group.offset + piece.sequence_index)
                    await queue.put((index, in_all))
        except HttpError as error:
            if error.status == ErrorKind.OVERLOADED.codes.http and is_taken.is_set():
                return False
            raise
        return True

    tasks = [asyncio.ensure_future(read(group)) for group in groups]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Seats:
    """Seats that tasks take in the order in which they ask."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, count: int) -> AsyncIterator[None]:
        """Take `count` seats, which are free again at the end of the context."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        self._give()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += count
            turn.cancel()
            self._give()

    def _give(self) -> None:
        """Give free seats to those who have waited for longest."""
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._free):
            count, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= count
                turn.set_result(None)
