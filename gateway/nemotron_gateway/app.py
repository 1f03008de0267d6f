"""The routes, and what happens around every request: its id, its key, its line in the log."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nemotron_core.errors import CLIENT_CLOSED_REQUEST
from nemotron_core.openai.errors import HttpError
from nemotron_gateway import access_log, page
from nemotron_gateway.backend import Backend
from nemotron_gateway.call import Call, Gone, Receive, Scope, Send
from nemotron_gateway.keys import Keys
from nemotron_gateway.metrics import Metrics
from nemotron_gateway.nemo_api import NeMo
from nemotron_gateway.openai_api import OpenAI
from nemotron_gateway.openapi import describe
from nemotron_gateway.record import Record
from nemotron_gateway.settings import GatewaySettings

LOG = logging.getLogger("nemotron_gateway")
UNMATCHED = "unmatched"
"""The metrics' route of every path that is none: strangers choose no label."""
QUIET = ("/health/live", "/health/ready", "/metrics")
"""Asked every few seconds, so not in the log."""

Endpoint = Callable[[Call], Awaitable[None]]


class Gateway:
    """An ASGI application. While it is `draining`, `/health/ready` says no."""

    def __init__(self, settings: GatewaySettings, keys: Sequence[str] = ()) -> None:
        self._settings = settings
        self._keys = Keys(keys)
        self._metrics = Metrics()
        self._backend = Backend(settings, self._metrics)
        openai, nemo = OpenAI(settings, self._backend), NeMo(settings, self._backend)
        self.draining = False
        self._app = Starlette(
            routes=[
                self._route("POST", "/v1/chat/completions", openai.chat),
                self._route("POST", "/v1/completions", openai.completions),
                self._route("GET", "/v1/models", openai.models),
                self._route("GET", "/v1/models/{name}", openai.model),
                self._route("PUT", "/generate", nemo.generate),
                self._route("GET", "/health/live", self._live, closed=False),
                self._route("GET", "/health/ready", self._ready, closed=False),
                self._route("GET", "/metrics", self._metrics_page, closed=False),
                self._route("GET", "/openapi.json", self._openapi, closed=False),
                *(
                    self._route("GET", path, file.send, closed=False)
                    for path, file in page.files().items()
                ),
            ],
            exception_handlers={HTTPException: _no_route},
            lifespan=self._lifespan,
        )

    @property
    def routes(self) -> list[str]:
        """The paths of all endpoints."""
        return [route.path for route in self._app.routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope["record"] = Record.of(scope["headers"])

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    *page.HEADERS,
                    (b"x-request-id", record.request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            route = record.route or UNMATCHED
            self._metrics.finished(route, record)
            if self._settings.access_log and route not in QUIET:
                access_log.write(scope, record)

    def _route(self, method: str, path: str, endpoint: Endpoint, *, closed: bool = True) -> Route:
        """`closed`: a key is needed, where there are keys."""
        return Route(path, _Asgi(self, path, endpoint, closed=closed), methods=[method])

    async def run(self, call: Call, endpoint: Endpoint, *, closed: bool) -> None:
        """One endpoint for one request, with its errors told to the client."""
        try:
            if closed:
                self._keys.check(call.header("authorization"))
            await endpoint(call)
        except HttpError as error:
            await call.fail(error)
        except Gone:
            call.record.status = CLIENT_CLOSED_REQUEST
        except Exception:
            LOG.exception("request %s failed", call.record.request_id)
            await call.fail(
                HttpError(
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    f"the gateway failed; its log says more of request {call.record.request_id}",
                    kind="server_error",
                )
            )

    def call(self, scope: Scope, receive: Receive, send: Send) -> Call:
        return Call(scope, receive, send, self._settings, self._metrics)

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with self._backend:
            yield

    async def _live(self, call: Call) -> None:
        await call.respond({"live": True})

    async def _ready(self, call: Call) -> None:
        ready = not self.draining and await self._backend.is_ready()
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        await call.respond({"ready": ready}, status)

    async def _metrics_page(self, call: Call) -> None:
        await call.send_bytes(self._metrics.page(), self._metrics.content_type)

    async def _openapi(self, call: Call) -> None:
        await call.respond(describe(self._settings, closed=self._keys.wanted))


class _Asgi:
    """An endpoint as Starlette's routes want it when they are to hand on the raw connection."""

    def __init__(self, gateway: Gateway, path: str, endpoint: Endpoint, *, closed: bool) -> None:
        self._gateway = gateway
        self._path = path
        self._endpoint = endpoint
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._gateway.call(scope, receive, send)
        call.record.route = self._path
        await self._gateway.run(call, self._endpoint, closed=self._closed)


async def _no_route(request: Request, error: Exception) -> Response:
    """What no route takes, in OpenAI's form."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}: {error.detail}"
    told = HttpError(error.status_code, what, code="no_such_route")
    return JSONResponse(told.body(), error.status_code, error.headers)
