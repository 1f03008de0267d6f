"""The engine's messages as bytes, however a socket cuts them."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_engine.protocol import (
    KEY_BYTES,
    VERSION,
    Ask,
    Cancel,
    Capabilities,
    Chunk,
    ClientMessage,
    Drain,
    EngineMessage,
    Failed,
    Frames,
    Hello,
    Histogram,
    Load,
    LoadLora,
    Loras,
    Query,
    Request,
    Step,
    UnloadLora,
    frame,
)

MAX_FRAME_BYTES = 1 << 28
KEY = b"k" * 16
HELLO = Hello(
    version=VERSION,
    lane="cpu",
    library="fake",
    vocab_size=10,
    max_seq_len=20,
    max_batch_size=2,
    max_queue_size=3,
    request_seconds=4,
    tokenizer="ab",
    capabilities=Capabilities(features=["bias"]),
    pid=7,
)
FROM_ENGINE: list[EngineMessage] = [
    HELLO,
    Step([Chunk(b"a" * 16, [1, 70000], [-0.5, -1.25]), Chunk(b"b" * 16, finish_reason="stop")]),
    Step([]),
    Load(
        steps=1,
        running=2,
        waiting=0,
        kv_cache_usage=None,
        prompt_tokens=3,
        generated_tokens=4,
        histograms={"seconds": Histogram([0, 1], 0.5)},
    ),
    Failed("out of memory: \N{SNOWMAN}"),
]
FROM_CLIENT: list[ClientMessage] = [
    Ask([Request(key=b"k" * 16, input_ids=[5] * 3000, max_tokens=1, bias={3: 0.5})]),
    Cancel([b"k" * 16], ["name"]),
    Query(),
    Drain(),
]


@given(cuts=st.lists(st.integers(0, 4000)), from_client=st.booleans())
def test_any_split_of_the_bytes_gives_the_same_messages(cuts: list[int], from_client: bool) -> None:
    messages = FROM_CLIENT if from_client else FROM_ENGINE
    data = b"".join(map(frame, messages))
    frames = Frames(ClientMessage if from_client else EngineMessage)
    received = []
    edges = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        received += frames.feed(data[start:end])
    assert received == messages


def test_byte_by_byte() -> None:
    frames = Frames(EngineMessage)
    received = []
    for byte in b"".join(map(frame, FROM_ENGINE)):
        received += frames.feed(bytes([byte]))
    assert received == FROM_ENGINE


def test_a_message_is_its_length_and_an_array_that_begins_with_its_tag() -> None:
    data = frame(Cancel([b"k" * 16], ["name"]))
    assert int.from_bytes(data[:4], "little") == len(data) - 4
    assert msgspec.msgpack.decode(data[4:]) == [2, [b"k" * 16], ["name"]]
    tags = {type(message): msgspec.msgpack.decode(frame(message)[4:])[0] for message in FROM_ENGINE}
    assert tags == {Hello: 10, Step: 11, Load: 12, Failed: 13}


SAMPLING = [0.0, 0, 1.0, 1.0, 0.0, 0.0, 0, 0]
CAPABILITIES = [["bias"], [], 0, 1000.0, None, "text", [], [], 0, []]
FORMAT: list[tuple[ClientMessage | EngineMessage, list[object]]] = [
    (
        Ask([Request(key=KEY, input_ids=[7], max_tokens=3)]),
        [
            1,
            [
                [
                    KEY,
                    [7],
                    3,
                    [],
                    *SAMPLING,
                    False,
                    None,
                    0,
                    [],
                    [],
                    {},
                    "",
                    "",
                    "",
                    0,
                    None,
                    0.0,
                    "",
                    False,
                ]
            ],
        ],
    ),
    (Cancel(), [2, [], []]),
    (Query(), [3]),
    (Drain(), [4]),
    (HELLO, [10, 1, "cpu", "fake", 10, 20, 2, 3, 4, "ab", CAPABILITIES, 7]),
    (Step([Chunk(KEY)]), [11, [[KEY, [], [], "", 0, "", "", [], [], []]]]),
    (
        Load(
            steps=1,
            running=2,
            waiting=3,
            kv_cache_usage=None,
            prompt_tokens=4,
            generated_tokens=5,
            histograms={"seconds": Histogram([6])},
        ),
        [12, 1, 2, 3, None, 4, 5, {"seconds": [[6], 0.0]}, [], 0, 0, 0],
    ),
    (Failed("gone"), [13, "gone"]),
    (LoadLora("polite", "/a"), [5, "polite", "/a"]),
    (UnloadLora("polite"), [6, "polite"]),
    (Loras(["polite"]), [14, ["polite"], "", ""]),
]
"""Each message without what may be left out, and what it is on the wire."""


@pytest.mark.parametrize(("message", "content"), FORMAT, ids=lambda value: type(value).__name__)
def test_the_format(message: ClientMessage | EngineMessage, content: list[object]) -> None:
    """Programs in other languages, and other versions of this one, speak it."""
    assert msgspec.msgpack.decode(frame(message)[4:]) == content
    assert len(KEY) == KEY_BYTES


def test_fields_that_a_later_version_appends_are_ignored() -> None:
    body = msgspec.msgpack.encode([13, "gone", "a new field", 5])
    (message,) = Frames(EngineMessage).feed(len(body).to_bytes(4, "little") + body)
    assert message == Failed("gone")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((MAX_FRAME_BYTES + 1).to_bytes(4, "little"), f"a message of {MAX_FRAME_BYTES + 1} bytes"),
        (b"GET / HTTP/1.1\r\n", "a message of 542393671 bytes"),
        (b"\x03\0\0\0\x91\xcc\x63", "no message of the engine's protocol"),  # no such tag
        (b"\x01\0\0\0\x90", "no message of the engine's protocol"),  # no tag
        (b"\x00\0\0\0", "no message of the engine's protocol"),
        (frame(HELLO), "no message of the engine's protocol"),  # the other side's
        (b"\x04\0\0\0\x92\x02\x01\x90", "no message of the engine's protocol"),  # keys are no int
    ],
)
def test_bytes_that_are_no_messages(data: bytes, message: str) -> None:
    frames = Frames(ClientMessage)
    assert list(frames.feed(frame(Query()))) == [Query()]
    with pytest.raises(NemotronError, match=message):
        list(frames.feed(data))


def test_the_longest_message_may_come() -> None:
    frames = Frames(ClientMessage)
    assert list(frames.feed(MAX_FRAME_BYTES.to_bytes(4, "little") + b"x")) == []


def test_an_error_crosses_the_socket() -> None:
    error = NemotronError("full", where="queue", remedy="wait", kind=ErrorKind.OVERLOADED)
    sent = Chunk.of_error(b"k" * 16, error)
    (step,) = Frames(EngineMessage).feed(frame(Step([sent])))
    assert isinstance(step, Step)
    (chunk,) = step.chunks
    assert chunk.finish_reason == "error"
    assert str(chunk.failure()) == "full [queue]: wait"
    assert chunk.failure().kind is ErrorKind.OVERLOADED
