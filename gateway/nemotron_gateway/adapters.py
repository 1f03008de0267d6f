"""LoRA adapters at the gateway: their names are models, and admins load and unload them.

Triton's wire has no way to load an adapter, so the gateway asks the engine's process on its socket.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_core.openai.keys import OpenModel, no_effect, taken
from nemotron_engine.probe import Probe
from nemotron_gateway.json_response import JsonResponse
from nemotron_gateway.request import read_body
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings

NAMES_SECONDS = 1.0
"""Seconds for which the names that the engine has told are used again."""
ANSWER_SECONDS = 10.0
"""Time for the engine to answer, which it does between two steps."""
LOAD_SECONDS = 120.0
"""Time for the engine to load an adapter."""


class LoadLoraRequest(OpenModel):
    """Body of `POST /v1/load_lora_adapter`, as vLLM has it."""

    lora_name: str = taken("the adapter's name, by which requests call it", ..., min_length=1)
    lora_path: str = taken("its folder, in PEFT's layout, on the engine's machine", ...)
    load_inplace: Any = no_effect("unload the old one first")


class UnloadLoraRequest(OpenModel):
    """Body of `POST /v1/unload_lora_adapter`, as vLLM has it."""

    lora_name: str = taken("the adapter's name", ..., min_length=1)
    lora_int_id: Any = no_effect("the name says which")


class Adapters:
    """The adapters that the engine has loaded, and the endpoints that change them."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._socket: Path | None = settings.engine_socket
        self._names: list[str] = []
        self._time = float("-inf")
        self._asking = asyncio.Lock()

    async def names(self) -> list[str]:
        """Return the names of the adapters: the last known ones if the engine cannot be asked."""
        if self._socket is None:
            return []
        async with self._asking:
            if time.monotonic() - self._time > NAMES_SECONDS:
                with suppress(HttpError):
                    self._names = await self._ask(lambda probe: probe.load().loras, ANSWER_SECONDS)
                self._time = time.monotonic()
            return self._names

    async def load(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /v1/load_lora_adapter`."""
        body = await read_body(request, record, self._settings, LoadLoraRequest)
        if body.lora_name in (self._settings.model, *self._settings.aliases):
            raise bad_request(f"{body.lora_name!r} is the model itself", "lora_name")
        return await self._change(
            lambda probe: probe.load_lora(body.lora_name, body.lora_path), "lora_path"
        )

    async def unload(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /v1/unload_lora_adapter`."""
        body = await read_body(request, record, self._settings, UnloadLoraRequest)
        return await self._change(lambda probe: probe.unload_lora(body.lora_name), "lora_name")

    async def _change(self, change: Callable[[Probe], list[str]], param: str) -> Response:
        try:
            names = await self._ask(change, LOAD_SECONDS)
        except NemotronError as error:
            if error.kind is ErrorKind.REFUSED:
                raise bad_request(str(error), param) from error
            raise HttpError.of_kind(error.kind, str(error)) from error
        async with self._asking:  # nobody who asked before keeps the old names
            self._names, self._time = names, time.monotonic()
        return JsonResponse({"adapters": names})

    async def _ask(self, question: Callable[[Probe], list[str]], seconds: float) -> list[str]:
        """Return what the engine answers. Raises `HttpError` if it does not."""
        if self._socket is None:
            raise HttpError(
                HTTPStatus.NOT_IMPLEMENTED,
                "this gateway has no engine's socket: load adapters where the engine runs",
                error_type="server_error",
                code="no_engine_socket",
            )
        path = self._socket

        def ask() -> list[str]:
            with Probe(path, seconds) as probe:
                return question(probe)

        try:
            return await asyncio.to_thread(ask)
        except OSError as error:
            raise HttpError.of_kind(ErrorKind.UNREACHABLE, "the engine does not answer") from error
