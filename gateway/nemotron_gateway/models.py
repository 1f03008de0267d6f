"""The model's names, and `/v1/models`."""

from __future__ import annotations

import time
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.openai.errors import HttpError
from nemotron_gateway.backend import Backend
from nemotron_gateway.json_response import JsonResponse
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings


class Models:
    """The endpoints that describe the model, which has aliases."""

    def __init__(self, settings: GatewaySettings, backend: Backend) -> None:
        self._backend = backend
        self._names = (settings.model, *settings.aliases)
        self._created = int(time.time())

    def check(self, name: str | None) -> str:
        """Return the name by which a request calls the model. Raises `HttpError` for others."""
        if name is None:
            return self._names[0]
        if name not in self._names:
            raise HttpError(
                HTTPStatus.NOT_FOUND,
                f"there is no model {name!r}, only {' or '.join(map(repr, self._names))}",
                code="model_not_found",
                param="model",
            )
        return name

    async def list(self, _request: Request, _record: RequestRecord) -> Response:
        """Answer `GET /v1/models`."""
        data = [await self._describe(name) for name in self._names]
        return JsonResponse({"object": "list", "data": data})

    async def one(self, request: Request, _record: RequestRecord) -> Response:
        """Answer `GET /v1/models/{name}`."""
        return JsonResponse(await self._describe(self.check(request.path_params["name"])))

    async def _describe(self, name: str) -> dict[str, object]:
        facts = await self._backend.facts()
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "nvidia",
            "root": self._names[0],
            "max_model_len": facts.max_seq_len,
            **facts.identity,
        }
