"""The model's names, those of its LoRA adapters, and `/v1/models`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.openai.errors import HttpError
from nemotron_gateway.adapters import Adapters
from nemotron_gateway.backend import Backend
from nemotron_gateway.json_response import JsonResponse
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings


@dataclass(frozen=True)
class ServedModel:
    """What a request's `model` means."""

    name: str
    """The name, as the request has it."""
    lora_name: str | None = None
    """The LoRA adapter of this name, or `None` for the model itself."""


class Models:
    """The endpoints that describe the model, which has aliases and may have LoRA adapters."""

    def __init__(self, settings: GatewaySettings, backend: Backend, adapters: Adapters) -> None:
        self._backend = backend
        self._adapters = adapters
        self._names = (settings.model, *settings.aliases)
        self._created = int(time.time())

    async def find(self, name: str | None) -> ServedModel:
        """Return what a request calls by this name. Raises `HttpError` if there is none."""
        if name is None:
            return ServedModel(self._names[0])
        if name in self._names:
            return ServedModel(name)
        adapters = await self._adapters.names()
        if name in adapters:
            return ServedModel(name, lora_name=name)
        names = " or ".join(map(repr, (*self._names, *adapters)))
        raise HttpError(
            HTTPStatus.NOT_FOUND,
            f"there is no model {name!r}, only {names}",
            code="model_not_found",
            param="model",
        )

    async def list(self, _request: Request, _record: RequestRecord) -> Response:
        """Answer `GET /v1/models`."""
        models = [ServedModel(name) for name in self._names]
        models += [ServedModel(name, name) for name in await self._adapters.names()]
        data = [await self._describe(model) for model in models]
        return JsonResponse({"object": "list", "data": data})

    async def one(self, request: Request, _record: RequestRecord) -> Response:
        """Answer `GET /v1/models/{name}`."""
        return JsonResponse(await self._describe(await self.find(request.path_params["name"])))

    async def _describe(self, model: ServedModel) -> dict[str, object]:
        facts = await self._backend.facts()
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "nvidia",
            "root": self._names[0],
            "parent": self._names[0] if model.lora_name else None,
            "max_model_len": facts.max_seq_len,
            **facts.identity,
        }
