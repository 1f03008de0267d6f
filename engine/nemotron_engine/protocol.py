"""The messages between an engine's process and its clients, over a Unix stream socket.

Each message is a frame: its length as an unsigned 32-bit little-endian integer, then the message in
MessagePack. A message is an array that begins with its tag, so the order of fields is the format:
fields are only ever appended. Whoever connects receives `Hello` first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from nemotron_core.errors import ErrorKind, NemotronError

VERSION = 1
KEY_BYTES = 16
"""Length of a request's key, which whoever asks makes at random."""
MAX_FRAME_BYTES = 1 << 28
"""Limit of a message's length; a longer one means that the other side speaks another protocol."""
_LENGTH = struct.Struct("<I")


class Request(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One sequence to generate. Tokens in, tokens out: text stays outside of the engine."""

    key: bytes
    """Random bytes that name the sequence in every other message."""
    input_ids: list[int]
    max_tokens: int
    end_ids: list[int] = []
    """Tokens that end the sequence; the end token is its last one."""
    temperature: float = 0.0
    """0 means greedy decoding, in which case `top_k`, `top_p` and `seed` have no effect."""
    top_k: int = 0
    """0 means no limit."""
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    seed: int = 0
    log_probs: bool = False
    """Whether chunks have the log-probability of each token."""
    seconds: float | None = None
    """Time limit, waiting included. The engine's own limit counts if it is less."""
    priority: int = 0
    """Lower ones first. Needs the feature `priorities` unless it is 0."""
    stop_sequences: list[list[int]] = []
    """Sequences of tokens that end the answer; they are its last tokens."""
    bad_sequences: list[list[int]] = []
    """Sequences of tokens that are never generated. Needs the feature `bad_words`."""
    bias: dict[int, float] = {}
    """Numbers to add to the logits of tokens. Needs the feature `bias`."""
    guide_type: str = ""
    """One of `GUIDE_TYPES`. Needs the feature `guides` unless it is empty."""
    guide: str = ""
    request_id: str = ""
    """The client's own name of the request; several requests may share it. See `Cancel`."""
    top_log_probs: int = 0
    """Number of alternatives at each generated token. Needs the feature `top_log_probs`."""
    prompt_log_probs: int | None = None
    """Number of alternatives at each prompt token. Needs `prompt_log_probs` unless `None`."""
    chunk_seconds: float = 0.0
    """Least time between two chunks. The first and the last one are sent at once; with infinity
    there are none between them."""
    lora: str = ""
    """Name of the LoRA adapter to compute with. Needs the feature `lora` unless it is empty."""
    scores: bool = False
    """Whether scores at the last of `input_ids` are asked for, and no tokens; then `max_tokens` is
    0. Needs an engine of the kind `reward`, which takes nothing else."""


GUIDE_TYPES = ("json", "json_schema", "regex", "ebnf_grammar", "structural_tag")
FEATURES = (
    *("bad_words", "bias", "guides", "lora", "priorities", "prompt_log_probs", "top_log_probs"),
)
"""What an engine may support beyond sampling, penalties, stop tokens and log-probabilities."""


class Capabilities(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What an engine can do. Whatever it lacks is refused by name."""

    features: list[str] = []
    """Elements of `FEATURES`."""
    guide_types: list[str] = []
    max_log_probs: int = 0
    """Largest number of alternatives at a token."""
    max_temperature: float = 1000.0
    max_scored_tokens: int | None = None
    """Most tokens to generate in a request with alternatives (`top_log_probs`, `prompt_log_probs`);
    `None` means no limit of its own."""
    kind: str = "text"
    """What the engine makes: "text", or "reward", which are the scores of a conversation."""
    attributes: list[str] = []
    """What the scores of a reward model are, in their order."""
    weights: list[float] = []
    """Weight of each score in the reward."""
    draft_tokens: int = 0
    """Most tokens that a draft proposes in a step; 0 without a draft."""
    without: list[str] = []
    """Fields of requests that do not go with the draft."""


class Ask(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Begin requests in the same step. They end as cancelled when the connection closes."""

    requests: list[Request]


class Cancel(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """End requests after the current step, whichever connection asked for them."""

    keys: list[bytes] = []
    request_ids: list[str] = []
    """The clients' own names: every request with one of them ends."""


class Query(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Ask for `Load`."""


class Drain(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Refuse new requests, and end the process when the last one has ended."""


class LoadLora(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """Load a LoRA adapter for requests that name it. The answer is `Loras`."""

    name: str
    folder: str
    """Path of a PEFT folder, as the engine's process reaches it."""


class UnloadLora(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """Unload an adapter that no request uses. The answer is `Loras`."""

    name: str


class Hello(msgspec.Struct, array_like=True, frozen=True, kw_only=True, tag=10):
    """The engine, to whoever connects."""

    version: int
    lane: str
    library: str
    """Name and version of the library that computes."""
    vocab_size: int
    max_seq_len: int
    """Most tokens of a prompt and its answer together."""
    max_batch_size: int
    max_queue_size: int
    request_seconds: float
    tokenizer: str
    """SHA-256 (hex) of the engine's `tokenizer.model`."""
    capabilities: Capabilities
    pid: int


class Chunk(msgspec.Struct, array_like=True):
    """The next tokens of one request."""

    key: bytes
    token_ids: list[int] = []
    log_probs: list[float] = []
    finish_reason: str = ""
    """Empty until the last chunk. "stop": the last token is an end token, or the last tokens are a
    stop sequence; "length": `max_tokens` are generated; "cancelled"; "error": see `error`."""
    scheduled_ns: int = 0
    """Start of the first step with this request, ns since the epoch; in the last chunk."""
    error: str = ""
    error_kind: str = ""
    """Name of an `ErrorKind`."""
    top_log_probs: list[list[tuple[int, float]]] = []
    """Token ids and log-probabilities of the alternatives at each of `token_ids`."""
    prompt_log_probs: list[list[tuple[int, float]]] = []
    """The same at each prompt token, its own first; the first token has none."""
    scores: list[float] = []
    """The score of each of the engine's attributes, in the only chunk of a request for scores."""

    def extend(self, later: Chunk) -> None:
        """Add the request's next chunk to this one."""
        self.token_ids += later.token_ids
        self.log_probs += later.log_probs
        self.top_log_probs += later.top_log_probs
        self.prompt_log_probs += later.prompt_log_probs
        if later.finish_reason:
            self.finish_reason, self.scheduled_ns = later.finish_reason, later.scheduled_ns
            self.error, self.error_kind = later.error, later.error_kind

    def failure(self, where: str | None = None) -> NemotronError:
        """Return the error of a chunk whose `finish_reason` is "error"."""
        return NemotronError(self.error, where=where, kind=ErrorKind[self.error_kind])

    @classmethod
    def of_error(cls, key: bytes, error: NemotronError) -> Chunk:
        """Return the last chunk of a request that failed."""
        return cls(key, finish_reason="error", error=str(error), error_kind=error.kind.name)


class Step(msgspec.Struct, array_like=True, tag=11):
    """The chunks of all sequences since the last message."""

    chunks: list[Chunk]


class Load(msgspec.Struct, array_like=True, frozen=True, kw_only=True, tag=12):
    """The engine's load and its counters since it started."""

    steps: int
    running: int
    """Number of requests that have begun and not ended, waiting ones included."""
    waiting: int
    """Number of requests that wait for their first step."""
    kv_cache_usage: float | None
    """Fraction of the KV cache in use, 0 to 1; `None` if the library does not report it."""
    prompt_tokens: int
    generated_tokens: int
    histograms: dict[str, Histogram] = {}
    """Latencies in seconds, by the names in `nemotron_core.metrics.HISTOGRAMS`."""
    loras: list[str] = []
    """Names of the LoRA adapters that are loaded."""
    draft_steps: int = 0
    """Number of times that an answer got tokens in a step with a draft, its first one excluded."""
    draft_proposed: int = 0
    """Most tokens that the draft could propose in them."""
    draft_accepted: int = 0
    """Number of tokens that were right, and came beside the one of the model itself."""


class Histogram(msgspec.Struct, array_like=True):
    """A distribution of latencies."""

    counts: list[int]
    """Number of latencies in each bucket of `LATENCY_BOUNDS`, and above the last bound."""
    total: float = 0.0
    """Sum of all latencies in seconds."""


class Failed(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """The engine's process ends, and with it every request."""

    reason: str


class Loras(msgspec.Struct, array_like=True, frozen=True, tag=14):
    """The adapters after a request to load or unload one, and why it failed, if it did."""

    names: list[str]
    error: str = ""
    error_kind: str = ""
    """Name of an `ErrorKind`."""


ClientMessage = Ask | Cancel | Query | Drain | LoadLora | UnloadLora
EngineMessage = Hello | Step | Load | Failed | Loras
_encoder = msgspec.msgpack.Encoder()


def frame(message: ClientMessage | EngineMessage) -> bytes:
    """Return a message as it goes over the socket."""
    buffer = bytearray(_LENGTH.size)
    _encoder.encode_into(message, buffer, _LENGTH.size)
    _LENGTH.pack_into(buffer, 0, len(buffer) - _LENGTH.size)
    return bytes(buffer)


class Frames:
    """Cuts a stream of bytes into messages of the type `message_type`.

    Raises `NemotronError` if the bytes are no messages of this protocol.
    """

    def __init__(self, message_type: object) -> None:
        self._decode = msgspec.msgpack.Decoder(message_type).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[ClientMessage | EngineMessage]:
        """Yield the messages that are complete with these bytes."""
        self._buffer += data
        start = 0
        while len(self._buffer) >= start + _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise NemotronError(f"a message of {length} bytes on the engine's socket")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            body = bytes(memoryview(self._buffer)[start + _LENGTH.size : end])
            start = end
            try:
                message = self._decode(body)
            except msgspec.MsgspecError as error:
                raise NemotronError(f"no message of the engine's protocol: {error}") from error
            yield message
        del self._buffer[:start]
