"""What `nemotron serve` prints when it is ready: where, what, how to ask, how to stop."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nemotron_build.engine_folder import open_engine
from nemotron_build.profile import Profile
from nemotron_core.reward import ModelKind
from nemotron_serve.ports import Endpoints

EXAMPLE_QUESTION, EXAMPLE_ANSWER = "Who are you?", "A reward model."
TRITON_MODELS: dict[ModelKind, str] = {"text": "ensemble", "reward": "reward"}
"""The Triton model that clients ask, by the kind of the engine's model."""


@dataclass(frozen=True)
class FrontEnd:
    """What the gateway says of itself."""

    model: str
    """Name of the model in OpenAI's API."""
    needs_key: bool


def welcome(
    engine: Path,
    profile: Profile,
    endpoints: Endpoints,
    kind: ModelKind,
    gateway: FrontEnd | None,
) -> str:
    """Return the lines that say where the server listens, and how to use and to stop it."""
    rows = [*_addresses(endpoints, kind, gateway), _limits(engine, profile)]
    width = max(len(where) for _, where, what in rows if what)
    return "\n".join(
        [
            f"{engine} is ready; Ctrl-C drains and stops.",
            *(f"  {name:9}  {where:{width}}  {what}".rstrip() for name, where, what in rows),
            "Try it:",
            *(f"  {shlex.join(command)}" for command in _examples(endpoints, kind, gateway)),
        ]
    )


def _addresses(
    endpoints: Endpoints, kind: ModelKind, gateway: FrontEnd | None
) -> Iterator[tuple[str, str, str]]:
    host = endpoints.host
    if gateway is not None:
        notes = ["with an API key"] if gateway.needs_key else []
        if kind == "text":
            yield "chat page", f"http://{host}:{endpoints.gateway}", ""
            notes.insert(0, f"model {gateway.model}")  # a reward model may have several names
        yield "OpenAI", f"http://{host}:{endpoints.gateway}/v1", ", ".join(notes)
    yield "gRPC", f"{host}:{endpoints.grpc}", f"Triton's model {TRITON_MODELS[kind]}"
    yield "HTTP", f"http://{host}:{endpoints.http}", "the same"
    yield "metrics", f"http://{host}:{endpoints.metrics}/metrics", ""
    yield "health", f"http://{host}:{endpoints.health}/health/ready", ""


def _limits(engine: Path, profile: Profile) -> tuple[str, str, str]:
    limits = profile.limits
    tokens = f"{open_engine(engine).max_seq_len:,} tokens of a prompt and its answer"
    requests = f"{limits.max_batch_size:,} requests at once, {limits.max_queue_size:,} more wait"
    return "limits", f"{tokens}; {requests}", ""


def _examples(
    endpoints: Endpoints, kind: ModelKind, gateway: FrontEnd | None
) -> Iterator[list[str]]:
    """Yield commands that ask the server something."""
    host = endpoints.host
    messages = [{"role": "user", "content": EXAMPLE_QUESTION}]
    body: dict[str, object] = {}
    if kind == "text":
        yield ["nemotron", "chat", "--url", f"{host}:{endpoints.grpc}", EXAMPLE_QUESTION]
        body["max_tokens"] = 100
    else:
        messages.append({"role": "assistant", "content": EXAMPLE_ANSWER})
    if gateway is None or kind != "text":
        url = f"http://{host}:{endpoints.http}/v2/models/{TRITON_MODELS[kind]}/generate"
        yield ["curl", url, "-d", json.dumps({"messages": json.dumps(messages), **body})]
        return
    url = f"http://{host}:{endpoints.gateway}/v1/chat/completions"
    headers = ["-H", "Content-Type: application/json"]
    if gateway.needs_key:
        headers += ["-H", "Authorization: Bearer KEY"]
    yield ["curl", url, *headers, "-d", json.dumps({"model": gateway.model, "messages": messages})]
