"""The model's names, those of its LoRA adapters, and `/v1/models`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.family import LARGEST
from nemotron_core.openai.errors import HttpError
from nemotron_core.openai.schema import ALIASES
from nemotron_core.reward import NAMES as REWARD_NAMES
from nemotron_core.reward import ModelKind
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
        self._names: dict[ModelKind, tuple[str, ...]] = dict.fromkeys(
            ("text", "reward"), (settings.model, *settings.aliases)
        )
        if settings.model == LARGEST and settings.aliases == ALIASES:
            self._names["reward"] = REWARD_NAMES
        self._created = int(time.time())

    async def find(self, name: str | None) -> ServedModel:
        """Return what a request calls by this name. Raises `HttpError` if there is none."""
        own_names = self._names[await self._backend.kind()]
        if name is None:
            return ServedModel(own_names[0])
        if name in own_names:
            return ServedModel(name)
        adapters = await self._adapters.names()
        if name in adapters:
            return ServedModel(name, lora_name=name)
        names = " or ".join(map(repr, (*own_names, *adapters)))
        raise HttpError(
            HTTPStatus.NOT_FOUND,
            f"there is no model {name!r}, only {names}",
            code="model_not_found",
            param="model",
        )

    async def list(self, _request: Request, _record: RequestRecord) -> Response:
        """Answer `GET /v1/models`."""
        kind = (await self._backend.facts()).kind
        models = [ServedModel(name) for name in self._names[kind]]
        adapters = await self._adapters.names()
        models += [ServedModel(name, name) for name in adapters if name not in self._names[kind]]
        data = [await self._describe(model) for model in models]
        return JsonResponse({"object": "list", "data": data})

    async def one(self, request: Request, _record: RequestRecord) -> Response:
        """Answer `GET /v1/models/{name}`."""
        return JsonResponse(await self._describe(await self.find(request.path_params["name"])))

    async def _describe(self, model: ServedModel) -> dict[str, object]:
        facts = await self._backend.facts()
        names = self._names[facts.kind]
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "nvidia",
            "root": names[0],
            "parent": names[0] if model.lora_name else None,
            "max_model_len": facts.max_seq_len,
            "kind": facts.kind,
            **facts.identity,
        }
