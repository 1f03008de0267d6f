"""The gateway as an ASGI application: its endpoints, and what every request has in common."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from nemotron_core.errors import CLIENT_CLOSED_REQUEST, ErrorKind
from nemotron_core.openai.errors import HttpError
from nemotron_core.openai.responses import ResponsesRequest
from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from nemotron_gateway import access_log, page
from nemotron_gateway.adapters import Adapters, LoadLoraRequest, UnloadLoraRequest
from nemotron_gateway.admission import Admission
from nemotron_gateway.backend import Backend
from nemotron_gateway.batches.routes import ROUTES, answer_off
from nemotron_gateway.connection_limits import HostCheck
from nemotron_gateway.json_response import JsonResponse, to_http_error
from nemotron_gateway.keys import Keys
from nemotron_gateway.metrics import Metrics
from nemotron_gateway.models import Models
from nemotron_gateway.nemo_api import NeMo
from nemotron_gateway.nemo_schema import GenerateRequest
from nemotron_gateway.openai_api import OpenAI
from nemotron_gateway.openapi import Access, Endpoint, describe
from nemotron_gateway.request_record import REQUEST_ID_HEADER, RequestRecord
from nemotron_gateway.responses_api import Responses
from nemotron_gateway.reward_api import Handler, Rewards
from nemotron_gateway.settings import LOOPBACK, GatewaySettings
from nemotron_gateway.tokens_api import DetokenizeRequest, TokenizeRequest, Tokens

if TYPE_CHECKING:
    from nemotron_gateway.batches.scheduler import Scheduler

LOG = logging.getLogger("nemotron_gateway")
HEALTH = ("/health", "/health/live", "/health/ready", "/metrics")
"""Routes that are requested every few seconds, and therefore are not in the access log. A gateway
that drains answers them too."""
NOT_SERVED = {
    "/v1/embeddings": "this model makes text, no embeddings",
    "/v1/moderations": "this model makes text, no moderations",
    "/v1/images/generations": "this model makes text, no images",
    "/v1/audio/speech": "this model makes text, no speech",
    "/v1/audio/transcriptions": "this model reads text, no speech",
    "/v1/assistants": "nothing is stored: send the whole conversation with each request",
    "/v1/threads": "nothing is stored: send the whole conversation with each request",
}
"""Routes of OpenAI's API that this model cannot have, and why."""
MAX_IGNORED_BYTES = 1024


class Gateway:
    """The ASGI application. While `draining` is true, it refuses requests with status 503."""

    def __init__(self, settings: GatewaySettings, keys: Keys | None = None) -> None:
        self._settings = settings
        self._keys = keys or Keys()
        self._metrics = Metrics()
        self._backend = Backend(settings, self._metrics)
        self._hosts = HostCheck(_served_names(settings, self._keys))
        self.draining = False
        self._requests = 0
        """Number of requests that are being answered, health and metrics aside."""
        self._admission = admission = Admission(settings.limits.tokens)
        self._scheduler: Scheduler | None = None
        adapters = Adapters(settings)
        models = Models(settings, self._backend, adapters)
        openai = OpenAI(settings, self._backend, models, admission)
        responses = Responses(settings, self._backend, models, openai)
        nemo = NeMo(settings, self._backend, admission)
        tokens = Tokens(settings, self._backend, models)
        rewards = Rewards(settings, self._backend, models, admission)
        user, admin = Access.USER, Access.ADMIN
        chat, completions = rewards.instead_of(openai.chat), rewards.refused(openai.completions)
        # fmt: off
        self.endpoints = (
            Endpoint("POST", "/v1/chat/completions", chat,
                     "The answer to a conversation, or its scores", ChatRequest, access=user),
            Endpoint("POST", "/v1/completions", completions,
                     "What follows a prompt", CompletionRequest, access=user),
            Endpoint("POST", "/v1/responses", rewards.refused(responses.create),
                     "The answer to a conversation, which is not stored", ResponsesRequest,
                     access=user),
            Endpoint("GET", "/v1/models", models.list, "The model", access=user),
            Endpoint("GET", "/v1/models/{name:path}", models.one,
                     "The model, by its name", access=user),
            *self._file_endpoints(
                {"/v1/chat/completions": chat, "/v1/completions": completions}
            ),
            Endpoint("POST", "/v1/load_lora_adapter", adapters.load,
                     "Load a LoRA adapter, for an admin key", LoadLoraRequest, access=admin),
            Endpoint("POST", "/v1/unload_lora_adapter", adapters.unload,
                     "Unload a LoRA adapter, for an admin key", UnloadLoraRequest, access=admin),
            Endpoint("POST", "/tokenize", tokens.tokenize,
                     "The tokens of a prompt or of a conversation", TokenizeRequest, access=user),
            Endpoint("POST", "/detokenize", tokens.detokenize,
                     "The text of tokens", DetokenizeRequest, access=user),
            Endpoint("GET", "/tokenizer_info", tokens.info,
                     "The tokenizer's special tokens and its chat template", access=user),
            Endpoint("PUT", "/generate", rewards.refused(nemo.generate),
                     "The model card's API, as NeMo's", GenerateRequest, access=user),
            Endpoint("GET", "/version", self._version, "The version of this program"),
            Endpoint("GET", "/health", self._ready, "As /health/ready"),
            Endpoint("GET", "/health/live", self._live, "200 while the gateway runs"),
            Endpoint("GET", "/health/ready", self._ready,
                     "200 if the engine makes a token, else 503"),
            Endpoint("GET", "/metrics", self._metrics_page, "For Prometheus"),
            Endpoint("GET", "/openapi.json", self._openapi),
            *(Endpoint("POST", path, _answer_not_served) for path in NOT_SERVED),
            *(Endpoint("GET", path, file.respond) for path, file in page.files().items()),
        )
        # fmt: on
        self._app = Starlette(
            routes=[self._route(endpoint) for endpoint in self.endpoints],
            middleware=_cross_origin(settings),
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
        is_counted = scope["path"] not in HEALTH

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    *page.HEADERS,
                    *_ignored_keys(record),
                    (REQUEST_ID_HEADER, record.request_id.encode()),
                ]
            await send(message)

        self._requests += is_counted
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            # The client has its answer: Starlette raises unexpected errors again for the log.
            LOG.error("request %s failed", record.request_id, exc_info=error)
        finally:
            self._requests -= is_counted
            record.finish()
            if self._settings.access_log and record.route not in HEALTH:
                access_log.write(scope, record)

    @property
    def running(self) -> int:
        """Number of requests that are being answered, and of batches that run."""
        return self._requests + (0 if self._scheduler is None else self._scheduler.running)

    async def open(self) -> None:
        """Go on with the batches of the gateway before. Raises `NemotronError` if it cannot."""
        if self._scheduler is not None:
            self._scheduler.open()

    def drain(self) -> None:
        """Refuse new requests; those of batches that have not begun wait for the next gateway."""
        self.draining = True
        self._admission.close()
        if self._scheduler is not None:
            self._scheduler.drain()

    async def close(self) -> None:
        """End the batches, with which the next gateway goes on."""
        if self._scheduler is not None:
            await self._scheduler.close()

    def _file_endpoints(self, handlers: Mapping[str, Handler]) -> Sequence[Endpoint]:
        """Return the endpoints of files and batches, whose requests `handlers` answer."""
        folder = self._settings.files.folder
        if folder is None:
            return [
                Endpoint(*route, answer_off, summary, access=Access.USER)
                for route, summary in ROUTES.items()
            ]
        # Only a gateway with batches loads what runs them.
        from nemotron_gateway.batches.endpoints import endpoints  # noqa: PLC0415
        from nemotron_gateway.batches.inside import InsideGateway  # noqa: PLC0415
        from nemotron_gateway.batches.scheduler import Scheduler  # noqa: PLC0415

        inside = InsideGateway(handlers, self._keys, self._backend, self._metrics)
        self._scheduler = scheduler = Scheduler(self._settings, folder, inside)
        self._metrics.batches.set_function(lambda: scheduler.running)
        return endpoints(self._settings, scheduler)

    def _route(self, endpoint: Endpoint) -> Route:
        """Return Starlette's route for an endpoint, with the checks that come first."""

        async def respond(request: Request) -> Response:
            record: RequestRecord = request.scope["record"]
            record.route = endpoint.path
            if not self._hosts.serves(request.headers.get("host", "")):
                raise HttpError(
                    HTTPStatus.MISDIRECTED_REQUEST,
                    f"the host {request.headers['host']!r} is not served here: use localhost, or "
                    "name it in the setting hosts",
                    code="host_not_served",
                )
            if endpoint.access is not Access.OPEN:
                authorization = request.headers.get("authorization", "")
                record.key = self._keys.check(
                    authorization, needs_admin=endpoint.access is Access.ADMIN
                )
            if self.draining and endpoint.path not in HEALTH:
                message = "the gateway shuts down: ask another one"
                error = HttpError.of_kind(ErrorKind.SHUTTING_DOWN, message)
                error.headers["Connection"] = "close"
                raise error
            return await endpoint.handler(request, record)

        return Route(endpoint.path, respond, methods=[endpoint.method])

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with self._backend:
            yield
            await self.close()  # while the engine can still be asked

    async def _version(self, _request: Request, _record: RequestRecord) -> Response:
        return JsonResponse({"version": version("nemotron-triton")})

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


def _served_names(settings: GatewaySettings, keys: Keys) -> tuple[str, ...]:
    """Return the names in the header `Host` that are served; none stands for all."""
    if settings.hosts or keys.are_required or settings.address not in LOOPBACK:
        return settings.hosts
    return LOOPBACK


def _cross_origin(settings: GatewaySettings) -> list[Middleware]:
    """Return what lets pages of other origins use the API, if the settings name any."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "X-Ignored-Keys", "Retry-After"],
        )
    ]


def _ignored_keys(record: RequestRecord) -> list[tuple[bytes, bytes]]:
    """Return the header that names the keys of the request that had no effect."""
    if not record.ignored_keys:
        return []
    value = ", ".join(quote(name, safe="._-") for name in record.ignored_keys)
    return [(b"x-ignored-keys", value.encode()[:MAX_IGNORED_BYTES])]


async def _answer_not_served(_request: Request, record: RequestRecord) -> Response:
    """Answer a request for what this model cannot do."""
    raise HttpError(HTTPStatus.NOT_FOUND, NOT_SERVED[record.route], code="not_served")


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
