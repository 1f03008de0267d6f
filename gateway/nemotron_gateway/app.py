"""The gateway as an ASGI application: its endpoints, and what every request has in common."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from nemotron_core.errors import CLIENT_CLOSED_REQUEST
from nemotron_core.openai.errors import HttpError
from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from nemotron_gateway import access_log, page
from nemotron_gateway.backend import Backend
from nemotron_gateway.json_response import JsonResponse, to_http_error
from nemotron_gateway.keys import Keys
from nemotron_gateway.metrics import Metrics
from nemotron_gateway.nemo_api import NeMo
from nemotron_gateway.nemo_schema import GenerateRequest
from nemotron_gateway.openai_api import OpenAI
from nemotron_gateway.openapi import Endpoint, describe
from nemotron_gateway.request_record import REQUEST_ID_HEADER, RequestRecord
from nemotron_gateway.settings import GatewaySettings

LOG = logging.getLogger("nemotron_gateway")
UNLOGGED = ("/health/live", "/health/ready", "/metrics")
"""Routes that are requested every few seconds, and therefore are not in the access log."""


class Gateway:
    """The ASGI application. While `draining` is true, `/health/ready` answers 503."""

    def __init__(self, settings: GatewaySettings, keys: Sequence[str] = ()) -> None:
        self._settings = settings
        self._keys = Keys(keys)
        self._metrics = Metrics()
        self._backend = Backend(settings, self._metrics)
        openai, nemo = OpenAI(settings, self._backend), NeMo(settings, self._backend)
        self.draining = False
        # fmt: off
        self.endpoints = (
            Endpoint("POST", "/v1/chat/completions", openai.chat,
                     "The answer to a conversation", ChatRequest, needs_key=True),
            Endpoint("POST", "/v1/completions", openai.completions,
                     "What follows a prompt", CompletionRequest, needs_key=True),
            Endpoint("GET", "/v1/models", openai.models, "The model", needs_key=True),
            Endpoint("GET", "/v1/models/{name}", openai.model,
                     "The model, by its name", needs_key=True),
            Endpoint("PUT", "/generate", nemo.generate,
                     "The model card's API, as NeMo's", GenerateRequest, needs_key=True),
            Endpoint("GET", "/health/live", self._live, "200 while the gateway runs"),
            Endpoint("GET", "/health/ready", self._ready,
                     "200 if the engine makes a token, else 503"),
            Endpoint("GET", "/metrics", self._metrics_page, "For Prometheus"),
            Endpoint("GET", "/openapi.json", self._openapi),
            *(Endpoint("GET", path, file.respond) for path, file in page.files().items()),
        )
        # fmt: on
        self._app = Starlette(
            routes=[self._route(endpoint) for endpoint in self.endpoints],
            exception_handlers={
                ClientDisconnect: _answer_disconnect,
                HTTPException: _answer_no_such_route,
                HttpError: _answer_error,
                Exception: _answer_error,
            },
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, count it and log it. Every response has the request's id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord.from_headers(scope["headers"], self._metrics)
        scope["record"] = record
        scope["send_to_client"] = send

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    *page.HEADERS,
                    (REQUEST_ID_HEADER, record.request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            # The client has its answer: Starlette raises unexpected errors again for the log.
            LOG.error("request %s failed", record.request_id, exc_info=error)
        finally:
            record.finish()
            if self._settings.access_log and record.route not in UNLOGGED:
                access_log.write(scope, record)

    def _route(self, endpoint: Endpoint) -> Route:
        """Return Starlette's route for an endpoint, with the check of the API key."""

        async def respond(request: Request) -> Response:
            record: RequestRecord = request.scope["record"]
            record.route = endpoint.path
            if endpoint.needs_key:
                self._keys.check(request.headers.get("authorization", ""))
            return await endpoint.handler(request, record)

        return Route(endpoint.path, respond, methods=[endpoint.method])

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with self._backend:
            yield

    async def _live(self, _request: Request, _record: RequestRecord) -> Response:
        return JsonResponse({"live": True})

    async def _ready(self, _request: Request, _record: RequestRecord) -> Response:
        is_ready = not self.draining and await self._backend.is_ready()
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return JsonResponse({"ready": is_ready}, status)

    async def _metrics_page(self, _request: Request, _record: RequestRecord) -> Response:
        return Response(self._metrics.page(), media_type=self._metrics.content_type)

    async def _openapi(self, _request: Request, _record: RequestRecord) -> Response:
        description = describe(
            self.endpoints, model=self._settings.model, has_keys=self._keys.are_required
        )
        return JsonResponse(description)


async def _answer_disconnect(_request: Request, _error: Exception) -> Response:
    """Answer nobody: the status is for the log and the metrics."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _answer_error(request: Request, error: Exception) -> Response:
    """Answer an error that was raised before anything was sent."""
    http_error = to_http_error(error, request.scope["record"].request_id)
    return JsonResponse(http_error.body(), http_error.status, http_error.headers)


async def _answer_no_such_route(request: Request, error: Exception) -> Response:
    """Answer a request that matches no endpoint, in the form of OpenAI's API."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    content = HttpError(error.status_code, message, code="no_such_route").body()
    return JsonResponse(content, error.status_code, error.headers)
