"""The endpoints of OpenAI's API for batches."""

from __future__ import annotations

import asyncio
import re

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.errors import ErrorKind
from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_core.openai.keys import OpenModel, taken
from nemotron_gateway.batches.files_api import page_of
from nemotron_gateway.batches.records import Batch, StoredBatch, new_id, now
from nemotron_gateway.batches.scheduler import Scheduler
from nemotron_gateway.batches.store import BATCH, MAX_FILES
from nemotron_gateway.batches.validation import ENDPOINTS
from nemotron_gateway.json_response import JsonResponse
from nemotron_gateway.keys import owner_of
from nemotron_gateway.request import read_body
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings

WINDOW = re.compile(r"(\d{1,4})([hd])")
HOURS = {"h": 1, "d": 24}
LONGEST_WINDOW = 31 * 24 * 3600
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512
"""Bounds of `metadata`, as in OpenAI's API."""
LONGEST_LIST, DEFAULT_LIST = 100, 20


class ExpiresAfter(OpenModel):
    anchor: str = taken("the files' making", "created_at")
    seconds: int = taken("seconds for which the files stay", ..., ge=1)


class BatchRequest(OpenModel):
    """Body of `POST /v1/batches`."""

    input_file_id: str = taken("a file of purpose `batch`", ...)
    endpoint: str = taken(f"one of {', '.join(ENDPOINTS)}", ...)
    completion_window: str = taken("hours or days, such as `24h` or `7d`", "24h")
    metadata: dict[str, str] | None = taken("texts of your own")
    output_expires_after: ExpiresAfter | None = taken("how long the batch's files stay")

    @property
    def seconds(self) -> int:
        """Length of the window in seconds, or 0 if it is none."""
        match = WINDOW.fullmatch(self.completion_window)
        return int(match[1]) * HOURS[match[2]] * 3600 if match else 0

    def check(self) -> None:
        """Raise `HttpError` if a value cannot be taken."""
        super().check()
        if self.endpoint not in ENDPOINTS:
            message = f"endpoint is {self.endpoint!r}: use one of {', '.join(ENDPOINTS)}"
            raise bad_request(message, "endpoint")
        if not 0 < self.seconds <= LONGEST_WINDOW:
            message = f"completion_window is {self.completion_window!r}: use 24h, up to 31d"
            raise bad_request(message, "completion_window")
        pairs = self.metadata or {}
        is_short = all(len(k) <= MAX_KEY and len(v) <= MAX_VALUE for k, v in pairs.items())
        if len(pairs) > MAX_PAIRS or not is_short:
            message = f"metadata has at most {MAX_PAIRS} keys of {MAX_KEY} characters, with"
            raise bad_request(f"{message} values of {MAX_VALUE}", "metadata")


class Batches:
    """The endpoints. A key sees its own batches only."""

    def __init__(self, settings: GatewaySettings, scheduler: Scheduler) -> None:
        self._settings, self._scheduler = settings, scheduler

    async def create(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /v1/batches`."""
        body = await read_body(request, record, self._settings, BatchRequest)
        owner = owner_of(record.key)
        store = self._scheduler.store.of(owner)
        store.file(body.input_file_id)
        limit = self._settings.files.key_batches
        batches = store.batches()
        if sum(not stored.batch.is_final for stored in batches) >= limit:
            message = f"{limit} batches of this key have not ended: wait for one, or cancel it"
            raise HttpError.of_kind(ErrorKind.OVERLOADED, message)
        if len(batches) >= MAX_FILES:
            store.forget_oldest()
        store.reserve(0, self._settings.files.key_bytes)
        batch = _batch(body)
        keep = body.output_expires_after
        stored = StoredBatch(batch=batch, keep_seconds=None if keep is None else keep.seconds)
        await asyncio.to_thread(store.begin_batch, stored)
        self._scheduler.submit(owner, batch)
        return JsonResponse(batch)

    async def list(self, request: Request, record: RequestRecord) -> Response:
        """Answer `GET /v1/batches`."""
        owner = owner_of(record.key)
        stored = self._scheduler.store.of(owner).batches()
        batches = [self._scheduler.view(owner, entry.batch.id) for entry in stored]
        return page_of(request, batches, LONGEST_LIST, DEFAULT_LIST)

    async def one(self, request: Request, record: RequestRecord) -> Response:
        """Answer `GET /v1/batches/{id}`."""
        return JsonResponse(self._scheduler.view(owner_of(record.key), request.path_params["id"]))

    async def cancel(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /v1/batches/{id}/cancel`."""
        owner, batch_id = owner_of(record.key), request.path_params["id"]
        return JsonResponse(await self._scheduler.cancel(owner, batch_id))


def _batch(body: BatchRequest) -> Batch:
    created = now()
    return Batch(
        id=new_id(BATCH),
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        created_at=created,
        expires_at=created + body.seconds,
        metadata=body.metadata,
    )
